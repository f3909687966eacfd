"""An MCP server with one tool, over standard input and output."""

from mcp.server import MCPServer

server = MCPServer("prices")


@server.tool()
def price_of(thing: str) -> str:
    """Return the price of a thing."""
    return f"{thing} costs 7"


if __name__ == "__main__":
    server.run("stdio")
