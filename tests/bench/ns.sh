#!/bin/bash
# Run a command in a network namespace of its own (own loopback, ports and TIME_WAIT table), in a session of its own
# whose autogroup and nice value outrank the rest of the machine (without the autogroup, nice has no effect).
exec setsid -w unshare -n -- bash -c 'ip link set lo up
for kv in "net/core/somaxconn=65535" "net/ipv4/ip_local_port_range=1024 65535" "net/ipv4/tcp_max_syn_backlog=65535"; do
    { echo "${kv#*=}" > "/proc/sys/${kv%%=*}"; } 2>/dev/null
done
{ echo -20 > /proc/self/autogroup; } 2>/dev/null
exec nice -n -20 "$@"' x "$@"
