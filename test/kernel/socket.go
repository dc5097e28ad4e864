package kernel

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"sync"
)

// connectAnother connects whoever asks with a Unix socket of the guest.
func connectAnother(answer http.ResponseWriter, request *http.Request) {
	var dialer net.Dialer
	socket, err := dialer.DialContext(request.Context(), "unix", request.URL.Query().Get("socket"))
	if err != nil {
		http.Error(answer, err.Error(), http.StatusBadGateway)
		return
	}
	// The answer's end is that of the headers; what follows is the socket's.
	answer.WriteHeader(http.StatusSwitchingProtocols)
	asker, buffered, err := http.NewResponseController(answer).Hijack()
	if err != nil {
		_ = socket.Close()
		return
	}
	join(asker, buffered, socket, socket)
}

// join copies between two connections until one of them ends. The readers hold what was read
// of each already.
func join(one net.Conn, fromOne io.Reader, other net.Conn, fromOther io.Reader) {
	var both sync.WaitGroup
	both.Go(func() {
		_, _ = io.Copy(other, fromOne) // its end is all that counts
		_ = other.Close()
	})
	both.Go(func() {
		_, _ = io.Copy(one, fromOther)
		_ = one.Close()
	})
	both.Wait()
}

// connect connects with a Unix socket of the guest.
func (g *Guest) connect(ctx context.Context, socket string) (net.Conn, io.Reader, error) {
	var dialer net.Dialer
	connection, err := dialer.DialContext(ctx, "tcp", g.network.agent(g.number))
	if err != nil {
		return nil, nil, err
	}
	reader := bufio.NewReader(connection)
	_, err = fmt.Fprintf(connection, "GET /connect?socket=%s HTTP/1.1\r\nHost: guest\r\n\r\n", url.QueryEscape(socket))
	var answer *http.Response
	if err == nil {
		answer, err = http.ReadResponse(reader, nil)
	}
	if err == nil {
		_ = answer.Body.Close() // it has none: what follows is the socket's
	}
	if err == nil && answer.StatusCode != http.StatusSwitchingProtocols {
		err = fmt.Errorf("connect with %s in guest %d: %s", socket, g.number, answer.Status)
	}
	if err != nil {
		_ = connection.Close()
		return nil, nil, err
	}
	return connection, reader, nil
}

// Relay makes a Unix socket of this machine that leads to one in the guest, which may come, go and
// come again. It ends with ctx; the error channel then says how.
func (g *Guest) Relay(ctx context.Context, here, there string) (<-chan error, error) {
	listener, err := net.Listen("unix", here)
	if err != nil {
		return nil, fmt.Errorf("relay to guest %d: %w", g.number, err)
	}
	stop := context.AfterFunc(ctx, func() { _ = listener.Close() })
	ended := make(chan error, 1)
	go func() {
		defer stop()
		for {
			asker, err := listener.Accept()
			if errors.Is(err, net.ErrClosed) {
				ended <- nil
				return
			}
			if err != nil {
				ended <- err
				return
			}
			go g.relay(ctx, asker, there)
		}
	}()
	return ended, nil
}

func (g *Guest) relay(ctx context.Context, asker net.Conn, there string) {
	connection, reader, err := g.connect(ctx, there)
	if err != nil {
		_ = asker.Close() // the asker sees that nobody listens
		return
	}
	stop := context.AfterFunc(ctx, func() { _ = asker.Close() })
	defer stop()
	join(asker, asker, connection, reader)
}
