"""The events that a worker logs, by name: the level of each, and what it means.

info tells one line a request, and what happens rarely: starts, hand-overs, losses and their ends. What else a request
goes through is debug. A warning is something that the worker gets over by itself, or that a request's sender or a
team's author should look at; an error is somebody's to mend.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Literal, NamedTuple

Level = Literal["debug", "info", "warning", "error"]


class LogEvent(NamedTuple):
    """An event, as it is documented."""

    level: Level
    meaning: str


_OF_REQUESTS: Final = {
    "turn_finished": LogEvent(
        "info",
        "A turn was taken and is stored: its target, status, code, number, tokens and calls, seconds of each part, "
        "bytes of the reply, steps that came from the journal, requests that joined it",
    ),
    "turn_rejected": LogEvent("info", "A request was refused: code and reason"),
    "turn_replayed": LogEvent("info", "A request was answered with the reply that is stored of its run"),
    "turn_cancelled": LogEvent("info", "A run was cancelled before it was started, and is answered so"),
    "cancel_received": LogEvent("info", "A control message was stored; the run's worker is told"),
    "run_cancelled": LogEvent("debug", "A run that goes on here is not wanted any more, and is stopped"),
    "run_interrupted": LogEvent("debug", "A run is cancelled for a later request of its session, `on_busy: interrupt`"),
    "requests_joined": LogEvent("debug", "Requests that waited became part of a turn, `on_busy: coalesce`"),
    "busy_not_judged": LogEvent(
        "debug", "Whether a request must wait could not be found out at once; it is in its place"
    ),
    "busy_judging_failed": LogEvent("error", "The same, for a fault of the worker's"),
    "session_busy_elsewhere": LogEvent("debug", "Another worker holds the session's lock; the claim is tried again"),
    "turn_claimed_again": LogEvent(
        "warning", "Postgres was away, or another program wrote the session: it is claimed again"
    ),
    "turn_resumed": LogEvent(
        "info", "A turn goes on behind what an earlier attempt recorded: how many steps, and the last"
    ),
    "journal_diverged": LogEvent(
        "warning", "An attempt asks something else than the last one; its later steps are made anew"
    ),
    "result_kept": LogEvent(
        "info", "A turn is at its end and Postgres is away: its result is kept, and stored afterwards"
    ),
    "kept_result_dropped": LogEvent(
        "warning", "Postgres was away for too long for one that was kept; the turn is taken again"
    ),
    "write_retried": LogEvent(
        "warning", "Postgres turned a write down for the moment, by a full disk say; it is tried again"
    ),
    "session_not_held": LogEvent(
        "error", "A session whose lane was lost could not be locked again, for a fault of the worker's"
    ),
    "result_refused": LogEvent("error", "What a turn left can't be stored; it ends as `invalid_result`"),
    "request_failed": LogEvent(
        "error", "A fault of the worker's; the request is tried again, then put with the dead letters"
    ),
    "request_dead_lettered": LogEvent(
        "warning", "A request or control message is put in `{prefix}.dead`: code and reason"
    ),
    "message_unreadable": LogEvent("error", "The same, of a message that the worker failed on"),
    "message_not_passed_on": LogEvent("error", "A message could not be copied to its place; it is delivered again"),
}
_OF_TEAMS: Final = {
    "executor_failed": LogEvent("error", "A team's, a member's or an executor's own code raised an error"),
    "executor_ignores_cancellation": LogEvent("error", "It went on after its turn had ended, and is left behind"),
    "task_failed": LogEvent("error", "A task that nobody awaits raised an error, or a callback did; mostly a team's"),
    "exit_ignored": LogEvent("error", "A team's code wanted to end the process"),
    "tool_failed": LogEvent("error", "A tool raised an error; the turn ends as `tool_failed`"),
    "toolset_unreachable": LogEvent("error", "A toolset, an MCP server say, could not be opened"),
    "toolset_not_closed": LogEvent("warning", "It could not be closed after its turn"),
    "member_failed": LogEvent("warning", "A member failed, and the team goes on without it"),
    "model_request_retried": LogEvent("warning", "A request to a model failed for the moment; it is made again"),
    "model_failed": LogEvent("error", "A request to a model failed for good"),
    "output_invalid": LogEvent("warning", "A model's answers or calls kept being invalid"),
    "summary_written": LogEvent("debug", "A session's summary was brought up to date"),
    "summary_rejected": LogEvent("warning", "The model took no summary of so many runs; it is tried with fewer"),
    "summary_not_written": LogEvent("warning", "A summary failed; it is made up for after the session's next turn"),
    "agno_answer_not_recorded": LogEvent("warning", "An answer of Agno's model is no JSON; a later attempt asks again"),
    "agno_model_not_recorded": LogEvent("warning", "Answers of a model of Agno's are not recorded, for its class"),
    "agno_run_not_described": LogEvent("warning", "A run of Agno's is stored without its details"),
    "agno_run_unreadable": LogEvent("warning", "A stored run is not Agno's; its team is not shown it"),
    "agno_setting_without_effect": LogEvent("warning", "A setting of an Agno team means nothing here"),
}
_OF_REPLIES: Final = {
    "reply_not_published": LogEvent(
        "error", "A fault of the worker's; the answer is stored, and the request delivered again"
    ),
    "reply_to_forbidden": LogEvent("warning", "A `reply_to` that replies may not go to; the reply went to the results"),
    "reply_to_gone": LogEvent(
        "info", "Nobody is at a `reply_to` any more; the reply went to the results, if it was one"
    ),
    "reply_too_large": LogEvent(
        "warning", "RabbitMQ takes no message of that size; the reply is sent without its content"
    ),
    "publish_retried": LogEvent("warning", "RabbitMQ did not confirm a message; it is published again"),
    "results_queue_missing": LogEvent("error", "The results' queue was deleted; it is declared again"),
    "queue_missing": LogEvent("error", "A partition or the dead letters' queue was deleted; it is declared again"),
    "event_dropped": LogEvent("warning", "A streaming event is no JSON"),
    "events_dropped": LogEvent("warning", "Streaming events come faster than RabbitMQ takes them: how many so far"),
    "events_interrupted": LogEvent("info", "The connection for streaming events was lost"),
}
_OF_CONNECTIONS: Final = {
    "lane_lost": LogEvent("warning", "A connection to Postgres is gone, and with it its sessions' locks"),
    "lane_unavailable": LogEvent("warning", "It can't be made again yet"),
    "lane_reconnected": LogEvent("info", "It is there again"),
    "broker_connection_lost": LogEvent(
        "warning", "The connection to RabbitMQ is gone; unfinished requests are delivered again"
    ),
    "broker_unavailable": LogEvent("warning", "It can't be made yet"),
    "channel_lost": LogEvent("warning", "The channel of a partition is gone, and opened anew"),
    "channel_reopened": LogEvent(
        "info", "A channel is opened anew, before its oldest request meets RabbitMQ's time-out"
    ),
    "consumer_failed": LogEvent("warning", "A partition could not be consumed; it is tried again"),
    "consumer_dead": LogEvent("warning", "RabbitMQ knows nothing of a consumer; it is made anew"),
    "fleet_not_read": LogEvent("info", "The gauges of the fleet could not be read; said once, until they can"),
}
_OF_THE_WORKER: Final = {
    "worker_started": LogEvent("info", "A worker is connected: its targets, prefix and port"),
    "partitions_wanted": LogEvent("info", "Its share of the partitions has changed"),
    "worker_consuming": LogEvent("info", "It consumes all of its share"),
    "worker_standing_by": LogEvent("info", "Others have all partitions"),
    "partitions_given_up": LogEvent("warning", "It consumes nothing, for Postgres is away or full"),
    "worker_draining": LogEvent("info", "It was told to stop, and lets started turns finish"),
    "worker_drain_timeout": LogEvent("warning", "Some were not done in time; they go on elsewhere"),
    "worker_stopped": LogEvent("info", "It has ended"),
    "worker_failed": LogEvent("error", "It ends by a fault of its own; what it had started runs elsewhere"),
    "worker_stopped_at_once": LogEvent("warning", "It was told twice, and did not wait"),
    "worker_process_started": LogEvent("info", "Of `--processes`: one was started"),
    "worker_died": LogEvent("error", "Of `--processes`: one ended by itself, and is started again"),
    "supervisor_gone": LogEvent("warning", "Of `--processes`: the first process is gone, and this one drains"),
    "http_not_listening": LogEvent("warning", "The default port is taken: nobody can probe or scrape this worker"),
    "record_not_logged": LogEvent("warning", "What a library wanted to log could not be rendered"),
    "setting_without_effect": LogEvent("warning", "A variable that begins with TEAMTURN_ is no setting"),
}

LOG_EVENTS: Final[Mapping[str, Mapping[str, LogEvent]]] = {
    "Requests and turns": _OF_REQUESTS,
    "Teams and models": _OF_TEAMS,
    "Replies and events": _OF_REPLIES,
    "Connections": _OF_CONNECTIONS,
    "The worker": _OF_THE_WORKER,
}
"""All of them, by what they are about."""
