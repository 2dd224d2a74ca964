package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// certificates writes an authority and a certificate for 127.0.0.1 signed by
// it, and returns their files and the authority's pool.
func certificates(t *testing.T) (ca, cert, key string, pool *x509.CertPool) {
	t.Helper()
	dir := t.TempDir()
	write := func(name, kind string, der []byte) string {
		t.Helper()
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	make := func(template, parent *x509.Certificate, signer *ecdsa.PrivateKey) ([]byte, *ecdsa.PrivateKey) {
		t.Helper()
		own, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		if signer == nil {
			signer = own
		}
		der, err := x509.CreateCertificate(rand.Reader, template, parent, &own.PublicKey, signer)
		if err != nil {
			t.Fatal(err)
		}
		return der, own
	}
	until := time.Now().Add(time.Hour)
	authority := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "ca"}, NotAfter: until, IsCA: true, BasicConstraintsValid: true}
	caDER, caKey := make(authority, authority, nil)
	leaf := &x509.Certificate{SerialNumber: big.NewInt(2), NotAfter: until, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}}
	leafDER, leafKey := make(leaf, authority, caKey)
	keyDER, err := x509.MarshalECPrivateKey(leafKey)
	if err != nil {
		t.Fatal(err)
	}
	pool = x509.NewCertPool()
	parsed, err := x509.ParseCertificate(caDER)
	if err != nil {
		t.Fatal(err)
	}
	pool.AddCert(parsed)
	return write("ca.pem", "CERTIFICATE", caDER), write("cert.pem", "CERTIFICATE", leafDER), write("key.pem", "EC PRIVATE KEY", keyDER), pool
}

func TestOnlyClientsWithACertificateAreTaken(t *testing.T) {
	ca, cert, key, pool := certificates(t)
	cfg := &config{Hosts: []string{"tcp://127.0.0.1:0"}, TLSVerify: true, TLSCA: ca, TLSCert: cert, TLSKey: key}
	ls, err := listen(cfg, service{}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{
		Handler:  http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "OK") }),
		ErrorLog: slog.NewLogLogger(slog.DiscardHandler, slog.LevelError),
	}
	go server.Serve(ls[0])
	defer server.Close()
	get := func(conf *tls.Config) error {
		c := http.Client{Transport: &http.Transport{TLSClientConfig: conf, DisableKeepAlives: true}}
		resp, err := c.Get("https://" + ls[0].Addr().String())
		if err == nil {
			resp.Body.Close()
		}
		return err
	}
	if err := get(&tls.Config{RootCAs: pool}); err == nil {
		t.Error("a client without a certificate was taken")
	}
	pair, err := tls.LoadX509KeyPair(cert, key)
	if err != nil {
		t.Fatal(err)
	}
	if err := get(&tls.Config{RootCAs: pool, Certificates: []tls.Certificate{pair}}); err != nil {
		t.Errorf("a client with a certificate: %v", err)
	}
}

func TestAddressesThatCannotBeServedAreRefused(t *testing.T) {
	for _, host := range []string{"/run/x.sock", "ftp://x", "tcp://256.0.0.1:1"} {
		if ls, err := listen(&config{Hosts: []string{host}}, service{}, slog.New(slog.DiscardHandler)); err == nil {
			ls[0].Close()
			t.Errorf("listen on %q: want an error", host)
		}
	}
	if _, err := listen(&config{Hosts: []string{"tcp://127.0.0.1:0"}, TLS: true, TLSCert: "/nosuch", TLSKey: "/nosuch"}, service{}, slog.New(slog.DiscardHandler)); err == nil {
		t.Error("TLS without a certificate: want an error")
	}
}
