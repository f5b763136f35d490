#!/bin/busybox sh
# The guest's init: brings the kernel up to the point where disks appear, then answers the agent's port for ever.
#
# One request is one line, "ID SECONDS BASE64-OF-SCRIPT"; the answer is one line, "ID STATUS BASE64-OUT BASE64-ERR".
# An empty field is printed as "-". SECONDS bounds the script (status 143 when it was cut off). "ready" is sent first.

export PATH=/usr/bin:/bin HOME=/tmp TERM=dumb
/bin/busybox mount -t devtmpfs devtmpfs /dev
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t tmpfs tmpfs /run
mount -t tmpfs tmpfs /tmp
ln -s /proc/self/mounts /run/mtab

for module in /modules/*.ko; do
    insmod "$module" || echo "init: $module was not loaded"
done

if grep -qw shell /proc/cmdline; then # by hand: README.md
    setsid cttyhack /usr/bin/dash -i
    poweroff -f
fi

agent_port() {
    for port in /sys/class/virtio-ports/*; do
        if [ "$(cat "$port/name" 2>/dev/null)" = agent ]; then
            echo "/dev/${port##*/}"
        fi
    done
}

until [ -n "$(agent_port)" ]; do
    sleep 0.1
done
exec 3<>"$(agent_port)"

encoded() {
    if [ -s "$1" ]; then
        base64 -w 0 "$1"
    else
        printf -- -
    fi
}

echo "init: ready" >/dev/console
echo ready >&3
while true; do
    if ! read -r id seconds script <&3; then
        sleep 0.1
        continue
    fi
    echo "$script" | base64 -d >/run/script
    timeout "$seconds" /usr/bin/dash /run/script </dev/null >/run/out 2>/run/err 3>&-
    echo "$id $? $(encoded /run/out) $(encoded /run/err)" >&3
done
