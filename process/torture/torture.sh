# A process tree that does not want to end. $1: how many children (that fork again); $2: a file to
# make when all are there; $3: after how many forks the process that forks all the time ends.
# Whoever forgets to end the tree loses little: that process also ends with the file's directory,
# and the rest within minutes.
trap '' TERM INT HUP QUIT USR1 USR2
PLACE=${2%/*}

# Daemons: forked twice, in sessions of their own, deaf.
for i in 1 2; do
	(setsid sh -c 'trap "" TERM HUP; (setsid sleep 120) & exec sleep 120' &)
done

# Another user, where we may.
setpriv --reuid=65534 --regid=65534 --clear-groups sleep 120 2>/dev/null &

# A process that forks and exits all the time, so that no list of processes has it. Each leaves a
# zombie if its reaper is frozen: without a limit they would take up all numbers of the host.
FORKS=$3
RUN='[ "$FORKS" -gt 0 ] && [ -d "$PLACE" ] || exit; FORKS=$((FORKS - 1)); sh -c "$RUN" & exit'
export PLACE FORKS RUN
sh -c "$RUN" &

# Children that fork again.
i=0
while [ "$i" -lt "$1" ]; do
	( (sleep 120 & setsid sleep 120 & wait) & wait) &
	i=$((i + 1))
done
: >"$2"
i=0
while [ -d "$PLACE" ] && [ "$i" -lt 120 ]; do
	wait
	sleep 1
	i=$((i + 1))
done
