package eventhub

import (
	"crypto"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"
)

// verifyJWT checks a bearer token: a JSON Web Token (RFC 7519) with an RS256 signature (RFC 7518, 3.3). One algorithm, so that
// nobody can choose a weaker one, and no library for it.
func (b *Broker) verifyJWT(token string, now time.Time) (claim, error) {
	o := b.opts.JWT
	if o == nil {
		return claim{}, errors.New("no bearer tokens are accepted")
	}
	parts := strings.Split(token, ".")
	if len(parts) != 3 {
		return claim{}, errors.New("the token is not a JWT")
	}
	var header struct{ Alg, Kid string }
	var body struct {
		Iss      string
		Aud      audiences
		Exp, Nbf *float64
	}
	if err := decodeJSON(parts[0], &header); err != nil {
		return claim{}, fmt.Errorf("the header of the token: %w", err)
	}
	if err := decodeJSON(parts[1], &body); err != nil {
		return claim{}, fmt.Errorf("the claims of the token: %w", err)
	}
	if header.Alg != "RS256" {
		return claim{}, fmt.Errorf("the algorithm of the token is %q, want RS256", header.Alg)
	}
	key, ok := o.Keys[header.Kid].(*rsa.PublicKey)
	if !ok {
		return claim{}, fmt.Errorf("there is no RSA key %q", header.Kid)
	}
	sig, err := base64.RawURLEncoding.DecodeString(parts[2])
	if err != nil {
		return claim{}, errSignature
	}
	sum := sha256.Sum256([]byte(parts[0] + "." + parts[1]))
	if rsa.VerifyPKCS1v15(key, crypto.SHA256, sum[:], sig) != nil {
		return claim{}, errSignature
	}
	switch {
	case body.Iss != o.Issuer:
		return claim{}, fmt.Errorf("the token is from %q", body.Iss)
	case !slices.Contains(body.Aud, o.Audience):
		return claim{}, fmt.Errorf("the token is for %q", body.Aud)
	case body.Exp == nil:
		return claim{}, errors.New("the token has no expiry")
	}
	expires := numericDate(*body.Exp)
	if !now.Before(expires) {
		return claim{}, errors.New("the token expired")
	}
	if body.Nbf != nil && now.Before(numericDate(*body.Nbf)) {
		return claim{}, errors.New("the token is not valid yet")
	}
	return claim{RightListen | RightSend, expires}, nil
}

// audiences is one string or a list of them.
type audiences []string

func (a *audiences) UnmarshalJSON(b []byte) error {
	var one string
	if json.Unmarshal(b, &one) == nil {
		*a = audiences{one}
		return nil
	}
	return json.Unmarshal(b, (*[]string)(a))
}

func decodeJSON(part string, into any) error {
	b, err := base64.RawURLEncoding.DecodeString(part)
	if err != nil {
		return err
	}
	return json.Unmarshal(b, into)
}

// numericDate bounds what a token can say, so that it is a time that can be compared.
func numericDate(seconds float64) time.Time {
	return time.Unix(int64(math.Max(0, math.Min(seconds, 1<<40))), 0)
}
