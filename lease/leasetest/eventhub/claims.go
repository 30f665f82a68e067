package eventhub

import (
	"errors"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"
)

// claim is what a peer may do with an entity and what is below it.
type claim struct {
	rights  Rights
	expires time.Time
}

const (
	tokenSAS = "servicebus.windows.net:sastoken"
	tokenJWT = "jwt"
)

var errHost = errors.New("the audience is another host")

// putToken answers put-token: it checks a token and remembers what it allows.
func (c *conn) putToken(r *request) response {
	if op := r.property("operation"); op != "put-token" {
		return refused(http.StatusBadRequest, "the operation is not known: "+op)
	}
	if c.broker.faults.refuseClaims.Load() {
		return refused(http.StatusUnauthorized, "the broker was told to refuse claims")
	}
	token, _ := r.body.(string)
	host, path, err := audience(r.property("name"))
	if len(path) > maxName {
		err = errors.New("the audience is too long")
	}
	if err == nil && !sameHost(host, c.hostname) {
		err = errHost
	}
	if err != nil {
		return refused(http.StatusUnauthorized, err.Error())
	}
	granted, err := c.broker.verify(token, r.property("type"), path, c.hostname)
	if err != nil {
		return refused(http.StatusUnauthorized, err.Error())
	}
	if _, known := c.claims[path]; !known && len(c.claims) >= maxClaims {
		return refused(http.StatusForbidden, "too many claims")
	}
	c.claims[path] = granted
	return accepted
}

// verify checks a token for an entity. Without a type, it is told by its looks.
func (b *Broker) verify(token, kind, path, host string) (claim, error) {
	if kind == "" {
		kind = tokenJWT
		if strings.HasPrefix(token, sasPrefix) {
			kind = tokenSAS
		}
	}
	switch kind {
	case tokenSAS:
		return b.verifySAS(token, path, host, time.Now())
	case tokenJWT:
		return b.verifyJWT(token, time.Now())
	}
	return claim{}, errors.New("the type of the token is not known: " + kind)
}

// authorize looks for a claim that covers an address.
func (c *conn) authorize(addr string, right Rights) *fault {
	for path := strings.ToLower(strings.Trim(addr, "/")); ; path = path[:max(strings.LastIndexByte(path, '/'), 0)] {
		if g, ok := c.claims[path]; ok && g.rights&right != 0 && time.Now().Before(g.expires) {
			return nil
		}
		if path == "" {
			return &fault{condUnauthorized, "no valid claim allows that for " + addr}
		}
	}
}

// authorizeAny looks for any claim. $management needs no more, since each request brings its own token.
func (c *conn) authorizeAny() *fault {
	for _, g := range c.claims {
		if time.Now().Before(g.expires) {
			return nil
		}
	}
	return &fault{condUnauthorized, "there is no valid claim"}
}

// audience splits a URL, or a host and a path, and brings both into lower case.
func audience(s string) (host, path string, err error) {
	s = strings.ToLower(s)
	if strings.Contains(s, "://") {
		u, err := url.Parse(s)
		if err != nil {
			return "", "", errors.New("the audience is not a URL")
		}
		host, path = u.Host, u.Path
	} else {
		host, path, _ = strings.Cut(s, "/")
	}
	if host == "" {
		return "", "", errors.New("the audience has no host")
	}
	return host, strings.Trim(path, "/"), nil
}

// covers tells whether an audience is an entity or above it.
func covers(audience, path string) bool {
	return audience == "" || audience == path || strings.HasPrefix(path, audience+"/")
}

// sameHost compares without ports. A peer that did not say which host it wants gets this one.
func sameHost(host, opened string) bool {
	return opened == "" || strings.EqualFold(withoutPort(host), withoutPort(opened))
}

func withoutPort(host string) string {
	if h, _, err := net.SplitHostPort(host); err == nil {
		return h
	}
	return strings.Trim(host, "[]")
}
