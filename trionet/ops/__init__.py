"""For those who run it.

supervisor, slots, sockets   prefork: who forks, who decides, what outlives every process
worker, application          one process that serves; what it serves, and how that is found
settings                     what an operator may set, in one table
admin, desk, control         the operator's pages, the process that serves them, how workers are asked
metrics/  debug/  doctor/    numbers, a look inside, whether the machine suffices
logs, stalls, dump           records, a loop that is held up, the state as text
systemd, changes             socket activation and notification; restarting while developing
limits, collector            descriptors; the garbage collector's share of the latency tail
"""
