# Process 1 once the root is complete: takes the job from the host, runs it, reports how it ended.
# It stays busybox: $lab/busybox is the only program that is sure to run when a job has broken something.
lab=/run/vduse-lab
b=$lab/busybox

# Ports are found by name, for their numbers depend on the order of the PCI devices.
port() {
  for entry in /sys/class/virtio-ports/*; do
    # The consoles have none.
    [ -e "$entry/name" ] && read -r name <"$entry/name" || continue
    [ "$name" = "$1" ] && echo "/dev/${entry##*/}" && return
  done
}

$b mkdir -p /dev/pts /dev/shm
$b mount -t devpts -o gid=5,mode=620,ptmxmode=666 devpts /dev/pts
$b mount -t tmpfs -o mode=1777 shm /dev/shm
$b ln -sf /proc/self/fd /dev/fd
$b ln -sf /proc/self/fd/0 /dev/stdin
$b ln -sf /proc/self/fd/1 /dev/stdout
$b ln -sf /proc/self/fd/2 /dev/stderr
$b mount -t debugfs debugfs /sys/kernel/debug 2>/dev/null
$b ifconfig lo 127.0.0.1 up
$b hostname vduse-lab
umask 022
# Words of the kernel's command line that it doesn't know end up as variables.
unset selinux OLDPWD

exec 3<>"$(port control)"
echo ready >&3

# Answer of the host: two lines of base64, the settings for this script and the job's own script.
read -r settings <&3
read -r job <&3
echo "$settings" | $b base64 -d >$lab/settings
echo "$job" | $b base64 -d >$lab/job
. $lab/settings

$b date -u -s "@$now" >/dev/null
for directory in $tmpfs; do
  $b mkdir -p "$directory"
  $b mount -t tmpfs -o mode=1777,size=80% tmp "$directory"
done
if [ -n "$results" ]; then
  $b mkdir -p "$results"
  # Not cached loosely like the root: the host reads these files while the guest still runs.
  $b mount -t 9p -o trans=virtio,version=9p2000.L,cache=mmap,msize=524288 results "$results" ||
    echo "lab: the results directory $results can't be mounted" >/dev/console
fi

# A hang is explained on the console: who is there, and where the blocked ones wait.
report() {
  {
    echo "lab: processes"
    $b ps -o pid,ppid,stat,args | $b grep -v -e ' \[.*\]$' -e "$b"
    echo "lab: blocked tasks"
  } >/dev/console 2>&1
  $b dmesg -n 8
  echo w >/proc/sysrq-trigger
  echo "lab: end of report" >/dev/console
}

# Orders of the host during the job.
while read -r order first second <&3; do
  case $order in
    size) $b stty -F /dev/hvc1 rows "$first" cols "$second" 2>/dev/null ;;
    report) report ;;
  esac
done &
orders=$!

if [ "$terminal" = 1 ]; then
  $b stty -F /dev/hvc1 rows "$rows" cols "$columns" 2>/dev/null
  $b setsid -c /bin/sh $lab/job <>/dev/hvc1 >&0 2>&1 3>&- &
  job=$!
  wait $job
  status=$?
else
  # The job writes to a pipe, not to the port itself: a port can't be opened twice, as /dev/stderr would.
  $b mkfifo $lab/output
  $b cat <$lab/output >"$(port output)" 3>&- &
  copier=$!
  $b setsid /bin/sh $lab/job </dev/null >$lab/output 2>&1 3>&- &
  job=$!
  wait $job
  status=$?

  # What the job left running holds the pipe open. It gets a moment to write its last words, then it goes.
  tries=0
  while $b kill -0 $copier 2>/dev/null && [ $tries -lt 30 ]; do
    $b sleep 0.05
    tries=$((tries + 1))
    [ $tries = 20 ] && for process in /proc/[0-9]*; do
      process=${process#/proc/}
      case $process in 1 | "$copier" | "$orders") ;; *) $b kill -9 "$process" 2>/dev/null ;; esac
    done
  done
fi

if [ -n "$results" ]; then
  # Only this file system: syncing all of them would wait for a device whose server is gone.
  cd /
  $b timeout 10 $b sync -f "$results"
fi
echo "exit $status" >&3

# The host ends the machine. Leaving here would be a kernel panic.
while :; do $b sleep 1000; done
