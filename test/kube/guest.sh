#!/bin/sh
# Makes a node of a guest that has just booted, up to where containerd and the kubelet can be started. Its environment says
#
#   ADDRESS, GATEWAY   the guest's address and the machine's, in a subnet of 24 bits
#   BRIDGE             the name of the bridge for pods
#   LOGS               the machine's folder for logs
#   KUBELET            the kubelet's root
set -eu

# The disk has what a node still has after a loss of power: images, containers, and the kubelet's folder.
mount /dev/ubda /var/lib
mkdir -p "$KUBELET"

# Containers may ask to see what is mounted outside, and to show what they mount.
mount --make-rshared /
mount -t cgroup2 cgroup2 /sys/fs/cgroup

# Logs are written on the machine, so that they outlive the guest.
mount -t hostfs none "$LOGS" -o "$LOGS"

# The kubelet wants to know the clock's frequency (cadvisor, GetClockSpeed), and this kernel does not tell.
sed '/^model name/a cpu MHz\t\t: 1000.000' /proc/cpuinfo >/run/cpuinfo
mount --bind /run/cpuinfo /proc/cpuinfo

# For as long as a pod has a raw block volume, the kubelet keeps a loop device over it.
modprobe loop

# Pods are neighbours of the machine and of the other guests: the guest's interface becomes a part of the bridge that they are
# connected to, and the bridge has the guest's address. It takes the hardware address, too, by which the neighbours know it.
modprobe -a bridge veth
ip link add "$BRIDGE" type bridge
ip link set "$BRIDGE" address "$(cat /sys/class/net/vec0/address)" up
ip address flush dev vec0
ip link set vec0 master "$BRIDGE"
ip address add "$ADDRESS/24" dev "$BRIDGE"
ip route add default via "$GATEWAY"
