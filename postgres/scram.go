package postgres

import (
	"crypto/hmac"
	"crypto/pbkdf2"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"fmt"

	"golang.org/x/text/secure/precis"
)

// Drivers refuse fewer iterations than this (RFC 7677). More only help secrets that people make up.
const scramRounds = 4096

// newSecret returns 256 random bits as text that needs no quoting in a shell, a URL or a password
// file.
func newSecret() string {
	var b [32]byte
	_, _ = rand.Read(b[:]) // never fails
	return base64.RawURLEncoding.EncodeToString(b[:])
}

// Verifier returns what the server stores of a password: enough to check it, not enough to log in with
// it.
func Verifier(password string) (string, error) { return verifier(password) }

// verifier returns what the server stores of a secret: enough to check the secret, not enough to
// log in with it.
func verifier(secret string) (string, error) {
	var salt [16]byte
	_, _ = rand.Read(salt[:]) // never fails
	return verifierWith(secret, salt[:], scramRounds)
}

func verifierWith(secret string, salt []byte, rounds int) (string, error) {
	// As in libpq: a secret that can't be prepared is used as it is.
	if prepared, err := precis.OpaqueString.String(secret); err == nil {
		secret = prepared
	}
	salted, err := pbkdf2.Key(sha256.New, secret, salt, rounds, sha256.Size)
	if err != nil {
		return "", fmt.Errorf("cannot derive a SCRAM verifier: %v", err)
	}
	stored := sha256.Sum256(sign(salted, "Client Key"))
	encode := base64.StdEncoding.EncodeToString
	return fmt.Sprintf("SCRAM-SHA-256$%d:%s$%s:%s", rounds, encode(salt), encode(stored[:]), encode(sign(salted, "Server Key"))), nil
}

func sign(key []byte, text string) []byte {
	h := hmac.New(sha256.New, key)
	_, _ = h.Write([]byte(text)) // never fails
	return h.Sum(nil)
}
