import asyncio

from teamturn import ClientTimedOut, RunClient, RunRequest


async def main() -> None:
    async with RunClient("amqp://guest:guest@localhost:5672/") as client:
        request = RunRequest(run_id="r-1", session_id="chat-1", team_id="capital", input="Where is Paris?")
        reply = await client.run(request, timeout_seconds=60)
        print(reply.status.value, reply.content)

        async for event in client.stream(RunRequest(run_id="r-2", team_id="capital", input="And Rome?")):
            if event.type == "content_delta":
                print(event.text, end="", flush=True)

        run_id = await client.submit(RunRequest(run_id="r-3", team_id="capital", input="And Oslo?"))
        try:
            print((await client.result(run_id, timeout_seconds=60)).content)
        except ClientTimedOut as error:
            print(error)  # no reply to run 'r-3' within 60 s: is a worker running?
            await client.cancel(run_id)


asyncio.run(main())
