"""A page that follows a stream of events which is cut off after every third: for `test_events_browser.py`."""

from __future__ import annotations

import trio

import trionet

PAGE = """<!doctype html><meta charset=utf-8><title>events</title><pre id=log></pre><p id=state></p>
<script>
const log = text => document.getElementById("log").textContent += text + "\\n";
const source = new EventSource("/events");
source.addEventListener("count", e => log(`${e.lastEventId}: ${e.data}`));
source.onmessage = e => log(`message: ${e.data}`);
source.onerror = () => {
  const names = ["connecting", "open", "closed"];
  document.getElementById("state").textContent = names[source.readyState];
};
</script>
"""


class Count(trionet.EventSource):
    """Counts to nine, three at a time, each time from where the client left off."""

    async def on_request(self, request):
        """After nine there is nothing more to come back for."""
        return trionet.Response(204) if request.last_event_id == "\u00b59" else None

    async def on_open(self, stream, request):
        """Three events, and the end."""
        began = int(request.last_event_id.removeprefix("\u00b5") or 0)
        await stream.send(f"after {began}\nin two lines")
        for number in range(began + 1, began + 4):
            await stream.send("x" * number, event="count", id=f"\u00b5{number}")
        stream.close()


def announce(server):
    """Say where."""
    print("listening on", server.endpoints[0].url, flush=True)


if __name__ == "__main__":
    routes = {"/": trionet.Response.html(PAGE), "/events": Count(retry=0.05)}
    trio.run(lambda: trionet.serve(trionet.Router(routes), port=0, announce=announce))
