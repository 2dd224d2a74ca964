package api

import (
	"net/http/httptest"
	"testing"

	"github.com/moby/moby/api/pkg/authconfig"
	registrytypes "github.com/moby/moby/api/types/registry"

	"github.com/minke-os/minke/engine/registry"
)

// TestProgressBarIsDockers compares with what dockerd prints.
func TestProgressBarIsDockers(t *testing.T) {
	tests := []struct {
		name           string
		current, total int64
		want           string
	}{
		{"nothing-yet", 0, 0, ""},
		{"unknown-total", 1500, 0, "   1.5kB"},
		{"begin", 1, 1000, "[>                                                  ]       1B/1kB"},
		{"half", 31_000_000, 62_000_000, "[=========================>                         ]     31MB/62MB"},
		{"end", 62_000_000, 62_000_000, "[==================================================>]     62MB/62MB"},
		{"more-than-all", 70, 60, "[==================================================>]      70B/60B"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := progressBar(tt.current, tt.total); got != tt.want {
				t.Errorf("progressBar(%d, %d) =\n%q, want\n%q", tt.current, tt.total, got, tt.want)
			}
		})
	}
}

func TestCredentialsAreReadFromHeaders(t *testing.T) {
	encode := func(a registrytypes.AuthConfig) string {
		s, err := authconfig.Encode(a)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	tests := []struct {
		name, header string
		want         registry.Credentials
	}{
		{"password", encode(registrytypes.AuthConfig{Username: "me", Password: "sécret?>"}), registry.Credentials{Username: "me", Password: "sécret?>"}},
		{"identity-token", encode(registrytypes.AuthConfig{IdentityToken: "t"}), registry.Credentials{IdentityToken: "t"}},
		{"both-in-one", encode(registrytypes.AuthConfig{Auth: "bWU6c2VjcmV0"}), registry.Credentials{Username: "me", Password: "secret"}},
		{"none", "", registry.Credentials{}},
		{"rubbish-is-none", "%%%", registry.Credentials{}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r := httptest.NewRequest("POST", "/images/create", nil)
			r.Header.Set(registrytypes.AuthHeader, tt.header)
			if got := credentialsOf(r); got != tt.want {
				t.Errorf("credentialsOf(%q) = %+v, want %+v", tt.header, got, tt.want)
			}
		})
	}
	r := httptest.NewRequest("POST", "/build", nil)
	r.Header.Set("X-Registry-Config", "eyJodHRwczovL2luZGV4LmRvY2tlci5pby92MS8iOnsidXNlcm5hbWUiOiJtZSJ9LCJyZWc6NTAwMCI6eyJ1c2VybmFtZSI6InlvdSJ9fQ==")
	got := registryConfig(r)
	if got["docker.io"].Username != "me" || got["reg:5000"].Username != "you" {
		t.Errorf("registryConfig = %+v, want me at docker.io and you at reg:5000", got)
	}
}
