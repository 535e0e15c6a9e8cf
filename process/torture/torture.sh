# A process tree that does not want to end. $1: how many children (that fork again); $2: a file to make when all are there.
trap '' TERM INT HUP QUIT USR1 USR2

# Daemons: forked twice, in sessions of their own, deaf.
for i in 1 2; do
	(setsid sh -c 'trap "" TERM HUP; (setsid sleep 1000) & exec sleep 1000' &)
done

# Another user, where we may.
setpriv --reuid=65534 --regid=65534 --clear-groups sleep 1000 2>/dev/null &

# A process that forks and exits, forever, so that no list of processes has it.
RUN='sh -c "$RUN" & exit'
export RUN
sh -c "$RUN" &

# Children that fork again.
i=0
while [ "$i" -lt "$1" ]; do
	( (sleep 1000 & setsid sleep 1000 & wait) & wait) &
	i=$((i + 1))
done
: >"$2"
while :; do wait; sleep 1; done
