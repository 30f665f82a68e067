package azstorage

import (
	"crypto/tls"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
)

// connections are shared by the sources of a process: most of them talk to one account. The SDK's own transport keeps
// 10 idle connections a host, and would open and close the others all the time.
var connections struct {
	sync.Mutex
	users  int
	client *http.Client
}

// SharedTransport returns the process's HTTP client, and what gives it back, once. Its idle connections are closed when
// nobody uses it any more.
func SharedTransport() (client *http.Client, release func()) {
	connections.Lock()
	defer connections.Unlock()
	if connections.users == 0 {
		connections.client = &http.Client{Transport: NewTransport()}
	}
	connections.users++
	client = connections.client
	return client, sync.OnceFunc(func() {
		connections.Lock()
		defer connections.Unlock()
		if connections.users--; connections.users == 0 {
			client.CloseIdleConnections()
		}
	})
}

// NewTransport makes a transport that keeps enough connections.
func NewTransport() *http.Transport {
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

// Options are those of every client.
func Options(transport policy.Transporter) policy.ClientOptions {
	return policy.ClientOptions{
		Transport: transport,
		Retry: policy.RetryOptions{
			// One more try, and a short one, for what is over in a moment. Where the service asks for less (500, 503,
			// 429) it is up to the caller to slow down, so those are not tried again here.
			MaxRetries:    1,
			RetryDelay:    100 * time.Millisecond,
			MaxRetryDelay: time.Second,
			TryTimeout:    15 * time.Second,
			StatusCodes:   []int{408, 502, 504},
		},
		Telemetry: policy.TelemetryOptions{ApplicationID: "lighterman"},
	}
}
