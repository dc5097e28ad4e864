// Package crash kills the driver's processes at random moments, over and over, while
// two hundred volumes are made, used and deleted, and sees that nothing is lost and nothing
// is left: see TestKill.
//
// Two controllers and two nodes run on a real Ceph. Each is killed with SIGKILL and started
// again at once; a request is repeated until it is answered, by whichever controller, as
// sidecars and kubelet do. In the end exactly the volumes asked for are there, and nothing else
// in `rbd ls`, `rbd trash ls`, `rados ls`, the mount table, the loop devices, the processes
// and the run directories, at the latest after a settling time of 90 s: a client that
// was killed while it held an image is watching it, as far as Ceph knows, for 30 s more.
//
// TestKillCopies does the same with snapshots, group snapshots, restores and clones, which need no
// node: known data is written with `rbd`. Volumes are deleted before their snapshots, snapshots before what
// was restored from them, clones of clones in any order; in the middle the index of each pool is removed
// by hand. What is read back is what was written before the snapshot or the clone; a part of everything is
// kept, and is there with its data when the rest has gone; and in the end nothing is left, not in
// the trash, the namespaces or the index either. TestKillFlatten does it with a small --flatten-depth.
//
// Environment variables change the scale; the defaults are in brackets:
//
//	RBD_CSI_CRASH_SEED     what happens to which volume, and when who is killed (random, printed)
//	RBD_CSI_CRASH_VOLUMES  how many volumes are made (200)
//	RBD_CSI_CRASH_STAGED   how many of them are staged, published and written (40)
//	RBD_CSI_CRASH_COPIES   how many requests are made for copies before all is deleted, and twice as many as
//	                       for those that are flattened (60)
//
// The same seed gives the same plan. How far a process gets before its end also depends
// on the machine, so a failure may need several runs to come back.
package crash
