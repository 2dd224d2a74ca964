package registry

import (
	"encoding/json"
	"encoding/pem"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/minke-os/minke/internal/errdef"
)

// A tokenServer gives tokens that a registry takes for a number of requests.
type tokenServer struct {
	*httptest.Server
	asked []url.Values // what tokens were asked for
	basic []string     // user:password of those who asked
	given atomic.Int64
}

func newTokenServer(t *testing.T) *tokenServer {
	ts := &tokenServer{}
	ts.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		r.ParseForm()
		ts.asked = append(ts.asked, r.Form)
		user, pass, ok := r.BasicAuth()
		if ok {
			ts.basic = append(ts.basic, user+":"+pass)
		}
		if pass == "wrong" {
			w.WriteHeader(http.StatusUnauthorized)
			w.Write([]byte(`{"details":"incorrect username or password"}`))
			return
		}
		answer := map[string]string{"token": fmt.Sprint("token-", ts.given.Add(1))}
		if r.Form.Get("offline_token") != "" {
			answer["refresh_token"] = "identity"
		}
		json.NewEncoder(w).Encode(answer)
	}))
	t.Cleanup(ts.Close)
	return ts
}

// guard lets a registry take nothing but these tokens, and each only for the
// requests that ok likes.
func (ts *tokenServer) guard(ok func(r *http.Request) bool) func(http.ResponseWriter, *http.Request) bool {
	return func(w http.ResponseWriter, r *http.Request) bool {
		if strings.HasPrefix(r.Header.Get("Authorization"), "Bearer token-") && ok(r) {
			return false
		}
		w.Header().Set("WWW-Authenticate", fmt.Sprintf(`Bearer realm="%s/token",service="reg",scope="from the registry"`, ts.URL))
		w.WriteHeader(http.StatusUnauthorized)
		return true
	}
}

func always(*http.Request) bool { return true }

func TestTokensAreAskedForAndReplacedWhenTheyExpire(t *testing.T) {
	f, ts := newFake(t), newTokenServer(t)
	layers := [][]byte{tarOf(t, "a", 200_000), tarOf(t, "b", 200_000), tarOf(t, "c", 200_000)}
	f.imageFor(t, "a/b", "1", linuxAMD, layers...)
	// Every layer's connection breaks, and by then its token is too old.
	var first sync.Map // path -> Authorization
	guard := ts.guard(func(r *http.Request) bool {
		token := r.Header.Get("Authorization")
		old, again := first.LoadOrStore(r.URL.Path, token)
		return !again || old != token
	})
	f.spoil = func(w http.ResponseWriter, r *http.Request) bool {
		if r.Method == http.MethodHead {
			return false
		}
		if guard(w, r) {
			return true
		}
		if b := f.blobs["a/b/"+filepath.Base(r.URL.Path)]; len(b) > 1000 && r.Header.Get("Range") == "" {
			dropped(w, r, b)
		}
		return false
	}
	c := client(t, Options{})
	id, err := c.Pull(t.Context(), ref(t, f.host()+"/a/b:1"), PullOptions{Credentials: Credentials{Username: "me", Password: "secret"}})
	if err != nil {
		t.Fatal(err)
	}
	stored(t, c, id, layers...)
	if len(ts.asked) < 2 {
		t.Errorf("%d tokens were asked for, want more than one", len(ts.asked))
	}
	want := url.Values{"service": {"reg"}, "scope": {"repository:a/b:pull"}, "account": {"me"}}
	if !reflect.DeepEqual(ts.asked[0], want) || ts.basic[0] != "me:secret" {
		t.Errorf("a token was asked for with %v by %v, want %v", ts.asked[0], ts.basic[0], want)
	}
}

func TestIdentityTokensStandForPasswords(t *testing.T) {
	f, ts := newFake(t), newTokenServer(t)
	f.imageFor(t, "x", "1", linuxAMD, tarOf(t, "a", 10))
	f.spoil = ts.guard(always)
	c := client(t, Options{})
	token, err := c.Login(t.Context(), f.host(), Credentials{Username: "me", Password: "secret"})
	if err != nil || token != "identity" {
		t.Fatalf("Login = %q, %v; want an identity token", token, err)
	}
	if _, err := c.Pull(t.Context(), ref(t, f.host()+"/x:1"), PullOptions{Credentials: Credentials{IdentityToken: token}}); err != nil {
		t.Fatal(err)
	}
	want := url.Values{"grant_type": {"refresh_token"}, "refresh_token": {"identity"}, "service": {"reg"}, "client_id": {clientID}, "scope": {"repository:x:pull"}}
	if got := ts.asked[len(ts.asked)-1]; !reflect.DeepEqual(got, want) {
		t.Errorf("a token was asked for with %v, want %v", got, want)
	}
}

func TestLogin(t *testing.T) {
	basicOnly := func(w http.ResponseWriter, r *http.Request) bool {
		if user, pass, _ := r.BasicAuth(); user+":"+pass == "me:secret" {
			return false
		}
		w.Header().Set("WWW-Authenticate", `Basic realm="r"`)
		w.WriteHeader(http.StatusUnauthorized)
		return true
	}
	tests := []struct {
		name, password string
		spoil          func(http.ResponseWriter, *http.Request) bool
		kind           errdef.Kind // "" for success
	}{
		{"open-registries-take-anybody", "secret", nil, ""},
		{"basic-credentials-are-checked", "secret", basicOnly, ""},
		{"wrong-basic-credentials-are-refused", "wrong", basicOnly, errdef.Unauthorized},
		{"tokens-are-had-for-credentials", "secret", newTokenServer(t).guard(always), ""},
		{"the-token-server-refuses-wrong-ones", "wrong", newTokenServer(t).guard(always), errdef.Unauthorized},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			f := newFake(t)
			f.spoil = tt.spoil
			_, err := client(t, Options{}).Login(t.Context(), f.URL+"/v1/", Credentials{Username: "me", Password: tt.password})
			if tt.kind == "" && err != nil || tt.kind != "" && (!errdef.Is(err, tt.kind) || !strings.Contains(err.Error(), "incorrect username or password")) {
				t.Errorf("Login = %v, want kind %q", err, tt.kind)
			}
		})
	}
}

func TestPasswordsDoNotGoToPlainTokenServers(t *testing.T) {
	f, ts := newFake(t), newTokenServer(t)
	f.spoil = ts.guard(always)
	s := httptest.NewTLSServer(f)
	defer s.Close()
	c := client(t, Options{})
	host := strings.TrimPrefix(s.URL, "https://")
	trust(t, c.o.CertDir, host, s)
	err := c.at(t.Context(), endpoint{host: host, scheme: "https"}, ref(t, "x"), Credentials{Username: "me", Password: "secret"}, (&pulling{ref: ref(t, "x")}).from)
	if !errdef.Is(err, errdef.Unavailable) || !strings.Contains(err.Error(), "without encryption") || len(ts.asked) > 0 {
		t.Errorf("pull = %v, %d tokens asked for; want a refusal", err, len(ts.asked))
	}
}

// trust puts a test server's certificate where Docker looks for authorities.
func trust(t *testing.T, certDir, host string, s *httptest.Server) {
	t.Helper()
	dir := filepath.Join(certDir, host)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	cert := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw})
	if err := os.WriteFile(filepath.Join(dir, "ca.crt"), cert, 0o644); err != nil {
		t.Fatal(err)
	}
}

func TestAuthoritiesOfARegistryAreTrusted(t *testing.T) {
	f := newFake(t)
	layer := tarOf(t, "a", 10)
	f.imageFor(t, "x", "1", linuxAMD, layer)
	s := httptest.NewTLSServer(f)
	defer s.Close()
	host := strings.TrimPrefix(s.URL, "https://")
	c := client(t, Options{})
	secure := endpoint{host: host, scheme: "https"}
	p := &pulling{ref: ref(t, host+"/x:1"), o: PullOptions{Host: linuxAMD, Progress: func(Progress) {}}}
	if err := c.at(t.Context(), secure, p.ref, Credentials{}, p.from); err == nil {
		t.Fatal("a certificate of an unknown authority was taken")
	}
	trust(t, c.o.CertDir, host, s)
	if err := c.at(t.Context(), secure, p.ref, Credentials{}, p.from); err != nil {
		t.Fatal(err)
	}
	stored(t, c, p.id, layer)

	os.WriteFile(filepath.Join(c.o.CertDir, host, "client.cert"), nil, 0o644)
	if err := c.at(t.Context(), secure, p.ref, Credentials{}, p.from); !errdef.Is(err, errdef.Invalid) || !strings.Contains(err.Error(), "client.cert") {
		t.Errorf("with an empty client certificate: %v, want it named", err)
	}
}

func TestInsecureRegistriesMayHaveAnyCertificate(t *testing.T) {
	f := newFake(t)
	layer := tarOf(t, "a", 10)
	f.imageFor(t, "x", "1", linuxAMD, layer)
	s := httptest.NewTLSServer(f)
	defer s.Close()
	c := client(t, Options{})
	id, err := c.Pull(t.Context(), ref(t, strings.TrimPrefix(s.URL, "https://")+"/x:1"), PullOptions{})
	if err != nil {
		t.Fatal(err)
	}
	stored(t, c, id, layer)
}

func TestChallenges(t *testing.T) {
	tests := []struct {
		name    string
		headers []string
		want    []challenge
	}{
		{"bearer", []string{`Bearer realm="https://a/t",service="a",scope="repository:x:pull,push"`},
			[]challenge{{"bearer", map[string]string{"realm": "https://a/t", "service": "a", "scope": "repository:x:pull,push"}}}},
		{"several-in-one-header", []string{`Negotiate, Basic realm="a, b", BEARER Realm=x`},
			[]challenge{{"negotiate", map[string]string{}}, {"basic", map[string]string{"realm": "a, b"}}, {"bearer", map[string]string{"realm": "x"}}}},
		{"several-headers", []string{`Basic realm="a"`, `Bearer realm="b"`},
			[]challenge{{"basic", map[string]string{"realm": "a"}}, {"bearer", map[string]string{"realm": "b"}}}},
		{"quoted-quotes-and-spaces", []string{`Basic realm = "a \"b\" \\"`}, []challenge{{"basic", map[string]string{"realm": `a "b" \`}}}},
		{"open-quotes", []string{`Basic realm="a`}, []challenge{{"basic", map[string]string{"realm": "a"}}}},
		{"rubbish", []string{"", "=,=", `"`, "\x00\xff"}, nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := parseChallenges(tt.headers); !reflect.DeepEqual(got, tt.want) {
				t.Errorf("parseChallenges(%q) = %v, want %v", tt.headers, got, tt.want)
			}
		})
	}
}

func FuzzChallenges(f *testing.F) {
	f.Add(`Bearer realm="https://a/t",service="a",scope="repository:x:pull,push", Basic realm=x`)
	f.Add(`Basic realm="a\"b`)
	f.Fuzz(func(t *testing.T, header string) {
		for _, c := range parseChallenges([]string{header}) {
			if c.scheme == "" || c.scheme != strings.ToLower(c.scheme) || c.params == nil {
				t.Errorf("parseChallenges(%q) has %v", header, c)
			}
		}
	})
}

func FuzzManifest(f *testing.F) {
	f.Add([]byte(`{"schemaVersion":2,"mediaType":"`+ociManifest+`","config":{"digest":"sha256:`+strings.Repeat("a", 64)+`","size":3},"layers":[]}`), "")
	f.Add([]byte(`{"schemaVersion":2,"manifests":[{"digest":"sha256:`+strings.Repeat("b", 64)+`","platform":{"os":"linux","architecture":"arm"}}]}`), ociIndex)
	f.Fuzz(func(t *testing.T, raw []byte, contentType string) {
		m, err := parseManifest(raw, contentType)
		if err != nil {
			if k := errdef.Of(err); k != errdef.Invalid && k != errdef.Unsupported {
				t.Errorf("error of kind %s: %v", k, err)
			}
			return
		}
		if m.isIndex() == (m.Config.Digest != "") {
			t.Errorf("%s is both an image and an index, or neither", raw)
		}
		for _, d := range slices.Concat(m.Layers, m.Manifests) {
			if len(d.Digest) != 71 || d.Size < 0 {
				t.Errorf("unchecked descriptor %+v", d)
			}
		}
		choose(m.Manifests, linuxAMD)
	})
}
