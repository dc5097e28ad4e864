// Package server is what is the same for every CSI request.
//
// A request passes through these, from the outside in, each in a file of its
// own; [Server] puts them together:
//
//	codes.go     the error that comes back gets its gRPC code
//	log.go       a logger of its own; one line when it fails
//	metrics.go   how long it took, and what came of it
//	required.go  turned away if a required field is missing
//	limits.go    or one is longer than the specification allows
//	join.go      a repeat joins the one that runs; others on its volume queue
//	panic.go     a panic of the service becomes an error
//
// What is known of each method (which fields it must have, what it queues by,
// how loudly it logs) is one table, in methods.go. A method that streams its
// answer passes through the same chain, see stream.go.
//
// Services therefore contain no lock, no metric, no code and no "missing x".
// They return errors of package fault, and this is the only package that knows
// gRPC's codes. Joining spares work and waiting; it is not what makes requests
// safe to repeat, because the same request can run in another process too.
//
// Beside the chain the package holds the socket (socket.go) and the endpoint
// for probes and metrics (health.go), which replaces the livenessprobe sidecar.
package server
