"""What you need to test what you build on trionet.

`check_poller` is the contract of a poller backend; `FEEDS`, `whole`, `bytewise` and `splits` are the ways in which
bytes may arrive at a codec. Nothing here imports pytest.
"""

from __future__ import annotations

from trionet.testing._feeds import FEEDS as FEEDS
from trionet.testing._feeds import Feed as Feed
from trionet.testing._feeds import bytewise as bytewise
from trionet.testing._feeds import splits as splits
from trionet.testing._feeds import whole as whole
from trionet.testing._poller import check_poller as check_poller
