package lab

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"os"
	"path/filepath"
	"time"
)

// metadataSecret holds the certificate by which programs that make backups know the service that tells what changed
// between snapshots.
const metadataSecret = "snapshot-metadata"

// metadataName is the service's name in the certificate, and in its address.
const metadataName = Release + "-snapshot-metadata." + Namespace

// certificateValidity is how long the certificate holds. Nobody renews it: a lab that is older is made anew.
const certificateValidity = 90 * 24 * time.Hour

// metadataValues are the chart's values for that service.
func (l *Lab) metadataValues() (map[string]any, error) {
	certificate, _, err := l.metadataCertificate()
	return map[string]any{"enabled": true, "tlsSecret": metadataSecret, "caCert": string(certificate)}, err
}

// metadataObject is the Secret with the certificate and its key.
func (l *Lab) metadataObject() (string, error) {
	certificate, key, err := l.metadataCertificate()
	return fmt.Sprintf(`apiVersion: v1
kind: Secret
metadata: {name: %s, namespace: %s}
type: kubernetes.io/tls
data:
  tls.crt: %s
  tls.key: %s
`, metadataSecret, Namespace, base64.StdEncoding.EncodeToString(certificate), base64.StdEncoding.EncodeToString(key)), err
}

// metadataCertificate returns certificate and key, in PEM. They are made once and kept in the lab's folder. The certificate is
// its own authority.
func (l *Lab) metadataCertificate() (certificate, key []byte, err error) {
	certificateFile, keyFile := filepath.Join(l.folder(), "metadata.crt"), filepath.Join(l.folder(), "metadata.key")
	certificate, err = os.ReadFile(certificateFile)
	if err == nil {
		key, err = os.ReadFile(keyFile)
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return certificate, key, err
	}
	if certificate, key, err = newCertificate(metadataName); err != nil {
		return nil, nil, fmt.Errorf("make a certificate for %s: %w", metadataName, err)
	}
	if err := os.WriteFile(keyFile, key, 0o600); err != nil {
		return nil, nil, err
	}
	// Last, because it says that both are there.
	return certificate, key, os.WriteFile(certificateFile, certificate, 0o644)
}

// newCertificate makes a certificate for a server of that name that only itself vouches for.
func newCertificate(name string) (certificate, key []byte, err error) {
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1),
		Subject:      pkix.Name{CommonName: name},
		DNSNames:     []string{name},
		NotBefore:    time.Now().Add(-time.Hour),
		NotAfter:     time.Now().Add(certificateValidity),
		ExtKeyUsage:  []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		// Whoever checks it takes it for the authority, too.
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, private.Public(), private)
	if err != nil {
		return nil, nil, err
	}
	encoded, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		return nil, nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: encoded}), nil
}
