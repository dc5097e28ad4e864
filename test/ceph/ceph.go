// Package ceph runs a real Ceph in a folder: monitors, a manager and BlueStore
// OSDs from the distribution's packages, cephx on, without a container and
// without root (a cluster with [Options.Root] needs root).
//
//	func TestMain(m *testing.M) { os.Exit(ceph.Main(m)) }
//
//	func TestSomething(t *testing.T) {
//		cluster := ceph.ForTest(t, ceph.Options{OSDs: 1})
//		image, err := cluster.RBD(t.Context(), "create", "--size", "1G", cluster.Pool()+"/one")
//		...
//
// A cluster of one monitor and one OSD is up in two or three seconds on two idle
// cores. Any number of them live side by side: each claims a block of ports of
// its own (see claimPorts) and keeps everything else in its folder.
//
// # Who owns what
//
// [Start] begins a second process, the supervisor, from the same executable. The
// supervisor makes the folder, brings the daemons up as its children and is the
// only one to start, signal or end them; a [Cluster] is a handle that asks it
// over a socket in the folder. Because the supervisor is the same executable,
// TestMain must begin with [Main] (or [Shared.Main]) and a command with
// [RunSupervisor].
//
// Nothing outlives its owner, however that ends:
//
//   - The process that called Start holds the write end of a pipe. When it is gone,
//     also by kill -9, the supervisor reads the end of the pipe, kills the daemons
//     and removes the folder. With [Options.Detached] only the bring-up is tied to
//     the caller, and the cluster stays until [Cluster.Down].
//   - The daemons and every tool a handle runs have a parent-death signal (prctl
//     PR_SET_PDEATHSIG), so they end also when the supervisor itself is killed.
//   - The folder that a killed supervisor leaves is removed by the next Start on the
//     machine: its lock file is no longer locked.
//   - Mounts of a cluster with a root of its own are in the supervisor's mount
//     namespace and end with it.
//
// # How it is so fast
//
// All keys stand in the monitors' first keyring, so no "auth get-or-create" and no
// "osd new" is needed: a monitor lets an OSD boot whose key it knows, and makes the
// entry in its map then. OSDs are formatted while the monitors are. BlueStore's
// fsck after mkfs is left out, and its I/O threads are told to look every 20 ms
// whether they should end (bdev_aio_poll_ms) instead of every 250, of which each
// open and close of the device waits one. paxos_propose_interval is 50 ms during the
// bring-up and then what it is by default, so that figures taken on the cluster are
// those of a real one. The manager gets empty modules in place of Ceph's.
//
// # Counting operations
//
// [Cluster.OpCount] is the measure of the budgets: the client operations that the
// OSDs have served. It is free of noise because nothing in an idle cluster is a
// client: the manager's own modules, of which rbd_support reads its schedules in
// every pool each minute, are replaced by empty ones unless
// [Options.ManagerModules] asks for them. Two things to know:
//
//   - An operation that fails is not counted, so looking for an object that is not there, or
//     creating one that is, costs nothing in this measure (PrimaryLogPG::log_op_stats runs for
//     results that are not errors).
//   - What a client does by itself is counted: an image that is open for writing or watched
//     renews its watch about every 5 s.
package ceph
