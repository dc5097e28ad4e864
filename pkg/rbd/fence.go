package rbd

import (
	"context"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"github.com/rbd-csi/rbd-csi/pkg/fault"
)

// Fences is the part of a [Pool] that is about who uses an image, and about shutting
// such a client out of the cluster. What is said of a Pool's methods holds for these.
//
// A client is one connection of one process to the cluster. Its name in the cluster's
// blocklist is ADDRESS:PORT/NONCE; the nonce is drawn anew for each connection, so an
// entry never hits another client, now or later. An OSD refuses all operations of a client
// that stands in the blocklist of the OSD map that it has.
type Fences interface {
	// Users returns the clients that watch an image's header or own its exclusive lock, or
	// fault.NotFound when there is no header. A client that is frozen or dead watches for 30 s more
	// (osd_client_watch_timeout), and owns the lock until another takes it. Two
	// operations when there are none, and about 15 otherwise (librbd).
	Users(ctx context.Context, id string) ([]User, error)
	// Blocklist shuts a client out for so long, and returns when the OSD that has the image's
	// header knows. The others learn it at the latest from the next client's operations, before they carry
	// those out: what that client has read or written the one shut out changes no more. An
	// entry that is there keeps its time, whoever made it (OSDMap::apply_incremental inserts and does not
	// replace): so Blocklist tells until when it lasts, which may be sooner than was asked.
	// fault.Invalid: not one exact client. fault.InUse: it
	// is this process's own. A proposal of the monitors, unless the client is there, and one operation.
	Blocklist(ctx context.Context, id, client string, lasts time.Duration) (until time.Time, err error)
	// Blocklisted returns the clients in the cluster's blocklist and until when. It
	// asks the monitors and costs no operation.
	Blocklisted(ctx context.Context) (map[string]time.Time, error)
	// Unblocklist makes sure that a client is not in the blocklist. fault.Denied: the user
	// has no more than `profile rbd`, which may add and not remove.
	Unblocklist(ctx context.Context, client string) error

	// NoteFence keeps a text about a client that is shut out, in an object of the
	// driver's own, rbd_csi.clients: the blocklist has no place for the reason. One operation.
	NoteFence(ctx context.Context, client, note string) error
	// NotedFences returns what NoteFence has kept in this place, by client. One operation
	// for each 1024.
	NotedFences(ctx context.Context) (map[string]string, error)
	// ForgetFence makes sure that nothing is kept about a client. One operation.
	ForgetFence(ctx context.Context, client string) error
}

// FenceTime is how long a fence lasts: longer than a machine stays frozen before somebody wakes it.
const FenceTime = 2 * 365 * 24 * time.Hour

// A User is a client that uses an image.
type User struct {
	Client  string // ADDRESS:PORT/NONCE
	Watches bool   // the header
	Owns    bool   // the exclusive lock
	// Control says that it is a connection over which a process of this driver controls images:
	// it grows them, takes snapshots and the like, and carries no data of a volume. Such
	// connections are noted in rbd_csi.clients before they open an image.
	Control bool
}

// CheckClient returns fault.Invalid unless the text names one exact client: an address, a
// port, and a nonce that is not 0. An entry without a nonce, or with 0, would shut
// out every client of a host.
func CheckClient(client string) error {
	address, nonce, found := strings.Cut(client, "/")
	_, err := netip.ParseAddrPort(address)
	number, errNonce := strconv.ParseUint(nonce, 10, 64)
	if !found || err != nil || errNonce != nil || number == 0 {
		return fmt.Errorf("%q is not ADDRESS:PORT/NONCE of one client: %w", client, fault.Invalid)
	}
	return nil
}

// ClientOf turns what librados tells as a client's address (rados_getaddrs, rbd_watchers_list,
// rados_list_lockers) into ADDRESS:PORT/NONCE. A client has one address; where it is written as
// a list with one for each protocol, all have the same nonce.
func ClientOf(address string) string {
	if list, isList := strings.CutPrefix(address, "[v"); isList {
		address, _, _ = strings.Cut("v"+strings.TrimSuffix(list, "]"), ",")
	}
	for _, protocol := range []string{"v1:", "v2:", "any:"} {
		address = strings.TrimPrefix(address, protocol)
	}
	return address
}
