package registry

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/minke-os/minke/internal/errdef"
	"github.com/minke-os/minke/oci"
)

// A refusal is an answer that is not the one hoped for.
type refusal struct {
	host    string
	status  int
	code    string // of the distribution protocol, as MANIFEST_UNKNOWN; may be empty
	message string
	after   time.Duration // how long the server asks us to wait
}

// Error has the words of Docker's client: the code, then the message.
func (e *refusal) Error() string {
	if e.code == "" && e.message == "" {
		return fmt.Sprintf("%s answered %d %s", e.host, e.status, http.StatusText(e.status))
	}
	code := strings.ToLower(strings.ReplaceAll(e.code, "_", " "))
	return strings.Trim(code+": "+e.message, ": ")
}

// passes reports whether the same request may succeed later.
func (e *refusal) passes() bool {
	switch e.status {
	case http.StatusTooManyRequests, http.StatusRequestTimeout, http.StatusInternalServerError,
		http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		return true
	}
	return false
}

// maxAnswer is the most that is read of an error's text.
const maxAnswer = 64 << 10

// refused reads why a request was refused.
func refused(resp *http.Response) *refusal {
	e := &refusal{host: resp.Request.URL.Host, status: resp.StatusCode, after: retryAfter(resp.Header.Get("Retry-After"))}
	var body struct {
		Errors []struct {
			Code    string `json:"code"`
			Message string `json:"message"`
		} `json:"errors"`
		Details string `json:"details"` // of token servers
	}
	text, _ := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err := json.Unmarshal(text, &body); err == nil {
		if len(body.Errors) > 0 {
			e.code, e.message = body.Errors[0].Code, body.Errors[0].Message
		} else {
			e.message = body.Details
		}
	}
	// A valid token that does not allow this: the repository is not there, or
	// not for us, and a registry does not say which.
	for _, c := range parseChallenges(resp.Header.Values("WWW-Authenticate")) {
		if resp.StatusCode == http.StatusUnauthorized && c.params["error"] == "insufficient_scope" {
			e.code, e.message = "DENIED", "requested access to the resource is denied"
		}
	}
	if e.code == "" && e.status == http.StatusUnauthorized {
		e.code = "UNAUTHORIZED"
		if e.message == "" {
			e.message = "authentication required"
		}
	}
	return e
}

// retryAfter reads seconds or a date.
func retryAfter(text string) time.Duration {
	if n, err := strconv.Atoi(text); err == nil {
		return time.Duration(max(n, 0)) * time.Second
	}
	if at, err := http.ParseTime(text); err == nil {
		return max(time.Until(at), 0)
	}
	return 0
}

// asked gives a refusal the kind and the words that Docker has for it, when
// what was asked for is ref.
func asked(ref oci.Reference, err error) error {
	r, ok := errors.AsType[*refusal](err)
	if !ok {
		return err
	}
	switch {
	case r.code == "MANIFEST_UNKNOWN":
		return errdef.NotFound.Errorf("manifest for %s not found: %w", ref.Familiar(), err)
	case r.code == "NAME_UNKNOWN":
		return errdef.NotFound.Errorf("repository %s not found: %w", ref.FamiliarRepository(), err)
	case r.code == "DENIED":
		return errdef.NotFound.Errorf("pull access denied for %s, repository does not exist or may require 'docker login': %w", ref.FamiliarRepository(), err)
	case r.code == "TOOMANYREQUESTS" || r.status == http.StatusTooManyRequests:
		return errdef.Unavailable.Errorf("%s limits how often it may be asked: %w; wait, log in or use a mirror", r.host, err)
	case r.status == http.StatusUnauthorized:
		return errdef.Unauthorized.Errorf("%s: %w; log in to %s with an account that may read it", ref.FamiliarRepository(), err, ref.Domain)
	case r.status == http.StatusForbidden:
		return errdef.Forbidden.Errorf("%s: %w", ref.FamiliarRepository(), err)
	case r.status == http.StatusNotFound:
		return errdef.NotFound.Errorf("manifest for %s not found: %w", ref.Familiar(), err)
	}
	return errdef.Unavailable.Errorf("%s: %w", ref.Familiar(), err)
}

// unreachable says what to check when no answer came.
func unreachable(host string, err error) error {
	if u, ok := errors.AsType[*url.Error](err); ok {
		err = u.Err // its text repeats the whole URL
	}
	hint := "check the network between this device and the registry"
	var (
		dns     *net.DNSError
		unknown x509.UnknownAuthorityError
		name    x509.HostnameError
		invalid x509.CertificateInvalidError
		record  tls.RecordHeaderError
		op      *net.OpError
	)
	switch {
	case errors.As(err, &dns) && dns.IsNotFound:
		hint = "check the registry's name, and the device's DNS servers"
	case errors.As(err, &dns):
		hint = "check the device's network and DNS servers"
	case errors.As(err, &unknown):
		hint = fmt.Sprintf("put the certificate of its authority into /etc/docker/certs.d/%s/ca.crt, or start minked with --insecure-registry %s", host, host)
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired:
		hint = "check the device's clock, then the registry's certificate"
	case errors.As(err, &name):
		hint = "use the name that the registry's certificate is for"
	case errors.As(err, &record), strings.Contains(err.Error(), "server gave HTTP response to HTTPS client"):
		hint = "the registry speaks plain HTTP: start minked with --insecure-registry " + host
	case errors.As(err, &op) && op.Op == "dial" && !op.Timeout():
		hint = "check that a registry listens there, and the network"
	}
	return errdef.Unavailable.Errorf("no answer from registry %s: %w; %s", host, err, hint)
}
