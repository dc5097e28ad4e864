// Command dns answers pods' questions for names of services, see package dns.
package main

import (
	"context"
	"flag"
	"fmt"
	"net"
	"os"
	"os/signal"
	"syscall"

	"github.com/rbd-csi/rbd-csi/test/kube/dns"
)

func main() {
	kubeconfig := flag.String("kubeconfig", "", "`file` that says where the API server is")
	listen := flag.String("listen", "127.0.0.1:53", "`address` to answer at, over UDP")
	flag.Parse()
	if err := serve(*kubeconfig, *listen); err != nil {
		fmt.Fprintln(os.Stderr, "dns:", err)
		os.Exit(1)
	}
}

func serve(kubeconfig, listen string) error {
	ctx, cancel := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer cancel()
	cluster, err := dns.Open(kubeconfig)
	if err != nil {
		return err
	}
	conn, err := net.ListenPacket("udp4", listen)
	if err != nil {
		return err
	}
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	if err := dns.Serve(ctx, conn, cluster); ctx.Err() == nil {
		return err
	}
	return nil
}
