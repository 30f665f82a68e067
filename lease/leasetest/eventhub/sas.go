package eventhub

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"net/url"
	"strconv"
	"strings"
	"time"
)

const sasPrefix = "SharedAccessSignature "

var errSignature = errors.New("the signature is wrong")

// verifySAS checks a shared access signature: sr is the audience, se the expiry in Unix seconds, skn the policy, and sig the
// HMAC-SHA256 of audience and expiry, as they are written, with the key of the policy.
func (b *Broker) verifySAS(token, path, host string, now time.Time) (claim, error) {
	fields, ok := strings.CutPrefix(token, sasPrefix)
	if !ok {
		return claim{}, errors.New("the token is not a shared access signature")
	}
	values := map[string]string{}
	for pair := range strings.SplitSeq(fields, "&") {
		k, v, _ := strings.Cut(pair, "=")
		values[k] = v
	}
	name, err := url.QueryUnescape(values["skn"])
	if err != nil {
		return claim{}, errors.New("the name of the policy is not escaped well")
	}
	p := b.policy(name)
	if p == nil {
		return claim{}, fmt.Errorf("there is no policy %q", name)
	}
	sig, err := url.QueryUnescape(values["sig"])
	if err != nil {
		return claim{}, errSignature
	}
	got, err := base64.StdEncoding.DecodeString(sig)
	if err != nil {
		return claim{}, errSignature
	}
	if !hmac.Equal(got, mac(p.Key, values["sr"], values["se"])) {
		return claim{}, errSignature
	}
	seconds, err := strconv.ParseInt(values["se"], 10, 64)
	if err != nil {
		return claim{}, errors.New("the expiry is not a number")
	}
	expires := time.Unix(seconds, 0)
	if !now.Before(expires) {
		return claim{}, errors.New("the token expired")
	}
	resource, err := url.QueryUnescape(values["sr"])
	if err != nil {
		return claim{}, errors.New("the audience is not escaped well")
	}
	signedHost, signedPath, err := audience(resource)
	if err != nil {
		return claim{}, err
	}
	if !sameHost(signedHost, host) {
		return claim{}, errHost
	}
	if !covers(signedPath, strings.ToLower(path)) {
		return claim{}, fmt.Errorf("the token is for %q, not for %q", signedPath, path)
	}
	rights := p.Rights
	if rights == 0 {
		rights = RightListen | RightSend
	}
	return claim{rights, expires}, nil
}

// mac is the signature that the key makes of an audience and an expiry.
func mac(key, resource, expires string) []byte {
	h := hmac.New(sha256.New, []byte(key))
	_, _ = h.Write([]byte(resource + "\n" + expires))
	return h.Sum(nil)
}
