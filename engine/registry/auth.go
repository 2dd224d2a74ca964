package registry

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"

	"github.com/minke-os/minke/internal/errdef"
)

// clientID is what we tell token servers we are, where they ask.
const clientID = "minke"

// An authorizer has the Authorization header of a session. Tokens live for
// minutes, a pull over a slow line for hours: when one has expired the
// registry says so, and it is replaced.
type authorizer struct {
	http   *http.Client
	creds  Credentials
	agent  string
	scopes []string // what tokens are to allow
	lax    bool     // the registry may do without TLS, so its token server may

	mu     sync.Mutex // held while a token is fetched: one for all who wait
	header string
}

// allow adds to what tokens are to allow. It is for before the first request.
func (a *authorizer) allow(scope string) {
	if !slices.Contains(a.scopes, scope) {
		a.scopes = append(a.scopes, scope)
	}
}

func (a *authorizer) current() string {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.header == "" && a.creds.RegistryToken != "" {
		a.header = "Bearer " + a.creds.RegistryToken
	}
	return a.header
}

// answer replaces the header, which a registry has refused with a challenge.
// It returns false if there is nothing better than what was refused.
func (a *authorizer) answer(ctx context.Context, refused string, resp *http.Response) (bool, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.header != refused { // somebody else has replaced it meanwhile
		return true, nil
	}
	for _, c := range parseChallenges(resp.Header.Values("WWW-Authenticate")) {
		switch c.scheme {
		case "bearer":
			if a.creds.RegistryToken != "" {
				return false, nil
			}
			token, _, err := a.token(ctx, c.params, false)
			if err != nil {
				return false, err
			}
			a.header = "Bearer " + token
			return true, nil
		case "basic":
			if a.creds.Username == "" {
				return false, errdef.Unauthorized.Errorf("no basic auth credentials")
			}
			a.header = "Basic " + basic(a.creds)
			return a.header != refused, nil
		}
	}
	return false, nil
}

func basic(c Credentials) string {
	return base64.StdEncoding.EncodeToString([]byte(c.Username + ":" + c.Password))
}

// token asks the server that a challenge names for a token, and for one that
// can stand for the password later if offline is set.
func (a *authorizer) token(ctx context.Context, params map[string]string, offline bool) (token, identity string, err error) {
	realm, err := url.Parse(params["realm"])
	if err != nil || realm.Host == "" || realm.Scheme != "https" && realm.Scheme != "http" {
		return "", "", errdef.Unavailable.Errorf("the registry sends us to %q for a token, which is not a URL", params["realm"])
	}
	if realm.Scheme == "http" && !a.lax {
		return "", "", errdef.Unavailable.Errorf("the registry sends us to %s for a token, without encryption, which is refused", realm.Redacted())
	}
	req, err := a.tokenRequest(ctx, realm, params["service"], offline)
	if err != nil {
		return "", "", err
	}
	req.Header.Set("User-Agent", a.agent)
	resp, err := a.http.Do(req)
	if err != nil {
		return "", "", unreachable(realm.Host, err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return "", "", refused(resp)
	}
	var answer struct {
		Token        string `json:"token"`
		AccessToken  string `json:"access_token"`
		RefreshToken string `json:"refresh_token"`
	}
	if err := json.NewDecoder(io.LimitReader(resp.Body, 1<<20)).Decode(&answer); err != nil {
		return "", "", errdef.Unavailable.Errorf("token from %s: %w", realm.Host, err)
	}
	if answer.Token == "" {
		answer.Token = answer.AccessToken
	}
	if answer.Token == "" {
		return "", "", errdef.Unavailable.Errorf("token from %s: the answer has none", realm.Host)
	}
	return answer.Token, answer.RefreshToken, nil
}

// tokenRequest asks in the form for passwords (Docker's, GET) or that for
// identity tokens (OAuth 2, POST).
func (a *authorizer) tokenRequest(ctx context.Context, realm *url.URL, service string, offline bool) (*http.Request, error) {
	q := realm.Query()
	if service != "" {
		q.Set("service", service)
	}
	if a.creds.IdentityToken != "" {
		q.Set("grant_type", "refresh_token")
		q.Set("refresh_token", a.creds.IdentityToken)
		q.Set("client_id", clientID)
		if len(a.scopes) > 0 {
			q.Set("scope", strings.Join(a.scopes, " "))
		}
		req, err := http.NewRequestWithContext(ctx, http.MethodPost, realm.String(), strings.NewReader(q.Encode()))
		if err == nil {
			req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		}
		return req, err
	}
	for _, s := range a.scopes {
		q.Add("scope", s)
	}
	if a.creds.Username != "" {
		q.Set("account", a.creds.Username)
	}
	if offline {
		q.Set("offline_token", "true")
		q.Set("client_id", clientID)
	}
	to := *realm
	to.RawQuery = q.Encode()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, to.String(), nil)
	if err == nil && a.creds.Username != "" {
		req.SetBasicAuth(a.creds.Username, a.creds.Password)
	}
	return req, err
}
