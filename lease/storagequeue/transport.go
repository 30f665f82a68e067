package storagequeue

import (
	"crypto/tls"
	"net"
	"net/http"
	"sync"
	"time"
)

// connections are shared by the sources of a process: most of them talk to one account. The SDK's own transport keeps
// 10 idle connections a host, and would open and close the others all the time.
var connections struct {
	sync.Mutex
	users  int
	client *http.Client
}

// sharedTransport returns the process's HTTP client, and what gives it back. Its idle connections are closed when nobody
// uses it any more.
func sharedTransport() (client *http.Client, release func()) {
	connections.Lock()
	defer connections.Unlock()
	if connections.users == 0 {
		connections.client = &http.Client{Transport: newTransport()}
	}
	connections.users++
	client = connections.client
	return client, func() {
		connections.Lock()
		defer connections.Unlock()
		if connections.users--; connections.users == 0 {
			client.CloseIdleConnections()
		}
	}
}

func newTransport() *http.Transport {
	dialer := net.Dialer{Timeout: 10 * time.Second, KeepAlive: 30 * time.Second}
	return &http.Transport{
		Proxy:                 http.ProxyFromEnvironment,
		DialContext:           dialer.DialContext,
		TLSClientConfig:       &tls.Config{MinVersion: tls.VersionTLS12},
		TLSHandshakeTimeout:   10 * time.Second,
		ResponseHeaderTimeout: 15 * time.Second,
		ExpectContinueTimeout: time.Second,
		MaxIdleConns:          1024,
		MaxIdleConnsPerHost:   256,
		// Less than the service keeps them, so that a request does not meet a connection that is being closed.
		IdleConnTimeout: 60 * time.Second,
	}
}
