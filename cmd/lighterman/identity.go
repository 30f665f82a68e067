package main

import (
	"crypto/rand"
	"fmt"
	"os"
)

// identity names this process to those that contend for the same lock. A host name alone would do in pods, and not for two processes
// of one host.
func identity() (string, error) {
	host, err := os.Hostname()
	if err != nil {
		return "", fmt.Errorf("finding the host's name: %w", err)
	}
	return host + "_" + rand.Text()[:8], nil
}
