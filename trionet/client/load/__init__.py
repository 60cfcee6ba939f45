"""The load generator behind `trionet load`: plan, processes, scenarios, result.

Where things are, in the order to read them:

    options      what a user asks for, checked
    plan         options → shares of the processes, source addresses, times of connects and messages; pure
    result       the document that comes out, as JSON
    coordinator  starts the processes, joins what they say, shows progress
    process      forks them: ``python -m trionet.client.load.process``; worker: what one does, told by JSON lines
    dialer       very many connections quickly: one task, a bounded number under way; attempt: one of them
    links        one connection: 200 bytes while it is idle
    scenarios/   what is done with the connections, one a file
    report       the result as a page or a picture
"""
