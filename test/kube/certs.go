package kube

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"time"
)

// validity is how long the certificates hold. Nobody renews them: a cluster that is
// older is made anew.
const validity = 90 * 24 * time.Hour

// A party is somebody with a certificate of the cluster's authority.
type party struct {
	// file is the name of the key and the certificate in the folder pki.
	file string
	// user and groups are who it is to the API server.
	user   string
	groups []string
	// config says that the party gets a kubeconfig.
	config bool
	// names and addresses are where it serves.
	names     []string
	addresses []string
}

// parties lists everybody. What they may do is decided by RBAC: for those whose names begin with
// system:, by the roles that the API server makes itself, and for the others by objects/rbac.yaml.
func parties(s *state) []party {
	list := []party{
		{file: "apiserver", user: "kube-apiserver", addresses: []string{s.Address, serviceAddress(1), "127.0.0.1"},
			names: []string{"localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local"}},
		{file: "apiserver-to-kubelet", user: "rbd-csi:apiserver-to-kubelet"},
		{file: "apiserver-to-etcd", user: "kube-apiserver"},
		{file: "etcd", user: "etcd", addresses: []string{s.Address}},
		{file: controllers, user: "system:kube-controller-manager", config: true},
		{file: scheduler, user: "system:kube-scheduler", config: true},
		{file: proxy, user: "system:kube-proxy", config: true},
		{file: names, user: "rbd-csi:dns", config: true},
		{file: adminName, user: "admin", groups: []string{"system:masters"}, config: true},
	}
	for _, n := range s.nodes() {
		user := "system:node:" + n.name
		list = append(list,
			party{file: n.of("kubelet-server"), user: user, addresses: []string{n.address}, names: []string{n.name}},
			party{file: n.of(kubelet), user: user, groups: []string{"system:nodes"}, config: true})
	}
	return list
}

// makeCredentials writes the authority, a key and a certificate for everybody, their
// kubeconfigs, and the key for the tokens of service accounts.
func (s *state) makeCredentials() error {
	ca, err := newAuthority()
	if err != nil {
		return err
	}
	if err := ca.write(s.pki("ca")); err != nil {
		return err
	}
	for _, p := range parties(s) {
		if err := ca.issue(s.pki(p.file), p); err != nil {
			return fmt.Errorf("issue a certificate for %s: %w", p.user, err)
		}
		if !p.config {
			continue
		}
		if err := s.writeKubeconfig(p); err != nil {
			return err
		}
	}
	return writeTokenKey(s.pki("service-accounts"))
}

type authority struct {
	key         *ecdsa.PrivateKey
	certificate *x509.Certificate
}

func newAuthority() (*authority, error) {
	template, err := unsigned("rbd-csi test cluster", nil)
	if err != nil {
		return nil, err
	}
	template.IsCA = true
	template.BasicConstraintsValid = true
	template.KeyUsage = x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, err
	}
	certificate, err := x509.ParseCertificate(der)
	return &authority{key: key, certificate: certificate}, err
}

func unsigned(user string, groups []string) (*x509.Certificate, error) {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	return &x509.Certificate{
		SerialNumber: serial,
		Subject:      pkix.Name{CommonName: user, Organization: groups},
		// Clocks of a virtual machine may be set back a little.
		NotBefore: time.Now().Add(-time.Hour),
		NotAfter:  time.Now().Add(validity),
	}, err
}

func (a *authority) write(path string) error {
	return writePair(path, a.key, a.certificate.Raw)
}

// issue writes PATH.key and PATH.crt.
func (a *authority) issue(path string, p party) error {
	template, err := unsigned(p.user, p.groups)
	if err != nil {
		return err
	}
	template.KeyUsage = x509.KeyUsageDigitalSignature
	template.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth}
	template.DNSNames = p.names
	for _, address := range p.addresses {
		template.IPAddresses = append(template.IPAddresses, net.ParseIP(address))
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.certificate, key.Public(), a.key)
	if err != nil {
		return err
	}
	return writePair(path, key, der)
}

func writePair(path string, key *ecdsa.PrivateKey, certificate []byte) error {
	if err := writeKey(path+".key", key); err != nil {
		return err
	}
	return writePEM(path+".crt", "CERTIFICATE", certificate)
}

// writeTokenKey writes the key that signs tokens of service accounts, and its public half, which
// the API server checks them with.
func writeTokenKey(path string) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	public, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		return err
	}
	if err := writePEM(path+".pub", "PUBLIC KEY", public); err != nil {
		return err
	}
	return writeKey(path+".key", key)
}

func writeKey(path string, key *ecdsa.PrivateKey) error {
	der, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		return err
	}
	return writePEM(path, "EC PRIVATE KEY", der)
}

func writePEM(path, kind string, der []byte) error {
	return os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600)
}

// writeKubeconfig writes the configuration with which a party finds the API server and proves who it
// is. It has the certificates themselves, so that it can be copied elsewhere. JSON is YAML.
func (s *state) writeKubeconfig(p party) error {
	embedded := map[string][]byte{}
	for name, path := range map[string]string{"ca": s.pki("ca.crt"), "crt": s.pki(p.file + ".crt"), "key": s.pki(p.file + ".key")} {
		text, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		embedded[name] = text
	}
	const name = "rbd-csi-test"
	text, err := json.MarshalIndent(map[string]any{
		"apiVersion":      "v1",
		"kind":            "Config",
		"current-context": name,
		"clusters": []any{map[string]any{"name": name, "cluster": map[string]any{
			"server": s.server(), "certificate-authority-data": embedded["ca"],
		}}},
		"users": []any{map[string]any{"name": p.file, "user": map[string]any{
			"client-certificate-data": embedded["crt"], "client-key-data": embedded["key"],
		}}},
		"contexts": []any{map[string]any{"name": name, "context": map[string]any{"cluster": name, "user": p.file}}},
	}, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(s.kubeconfig(p.file), text, 0o600)
}

// kubeconfig is the path of a party's configuration; the administrator's lies where users look.
func (s *state) kubeconfig(file string) string {
	if file == adminName {
		return filepath.Join(s.Folder, kubeconfigFile)
	}
	return s.config(file + ".kubeconfig")
}
