package azstorage

import (
	"encoding/base64"
	"errors"
	"strings"
	"testing"

	"github.com/lighterman-dev/lighterman/lease"
)

// A made-up key; it opens nothing.
var key = base64.StdEncoding.EncodeToString([]byte("a made-up key, for tests alone"))

func TestEndpoints(t *testing.T) {
	for name, test := range map[string]struct{ connection, blob, queue, url string }{
		"public cloud": {
			"DefaultEndpointsProtocol=https;AccountName=acct;AccountKey=" + key + ";EndpointSuffix=core.windows.net",
			"https://acct.blob.core.windows.net", "https://acct.queue.core.windows.net", "https://acct.blob.core.windows.net/c",
		},
		"another cloud": {
			"AccountName=acct;AccountKey=" + key + ";EndpointSuffix=core.chinacloudapi.cn",
			"https://acct.blob.core.chinacloudapi.cn", "https://acct.queue.core.chinacloudapi.cn", "https://acct.blob.core.chinacloudapi.cn/c",
		},
		"endpoints": {
			"BlobEndpoint=http://127.0.0.1:1/a/;QueueEndpoint=http://127.0.0.1:2/a;AccountName=a;AccountKey=" + key,
			"http://127.0.0.1:1/a", "http://127.0.0.1:2/a", "http://127.0.0.1:1/a/c",
		},
		"one endpoint": {
			"BlobEndpoint=https://own.example.org;AccountName=acct;AccountKey=" + key,
			"https://own.example.org", "https://acct.queue.core.windows.net", "https://own.example.org/c",
		},
		"signature": {
			"BlobEndpoint=https://acct.blob.core.windows.net/;QueueEndpoint=https://acct.queue.core.windows.net/;SharedAccessSignature=?sv=1&sig=abc%3D",
			"https://acct.blob.core.windows.net", "https://acct.queue.core.windows.net", "https://acct.blob.core.windows.net/c?sv=1&sig=abc%3D",
		},
		"signature in an endpoint": {
			"BlobEndpoint=https://acct.blob.core.windows.net/?sv=1&sig=abc%3D;AccountName=acct",
			"https://acct.blob.core.windows.net", "https://acct.queue.core.windows.net", "https://acct.blob.core.windows.net/c?sv=1&sig=abc%3D",
		},
		"emulator": {
			"UseDevelopmentStorage=true",
			"http://127.0.0.1:10000/devstoreaccount1", "http://127.0.0.1:10001/devstoreaccount1", "http://127.0.0.1:10000/devstoreaccount1/c",
		},
	} {
		t.Run(name, func(t *testing.T) {
			a, err := Parse("connection string", test.connection, Blob, Queue)
			if err != nil {
				t.Fatal(err)
			}
			if got := a.Endpoint(Blob).String(); got != test.blob {
				t.Errorf("the blob service is at %s, want %s", got, test.blob)
			}
			if got := a.Endpoint(Queue).String(); got != test.queue {
				t.Errorf("the queue service is at %s, want %s", got, test.queue)
			}
			if got := a.URL(Blob, "c"); got != test.url {
				t.Errorf("a container is at %s, want %s", got, test.url)
			}
		})
	}
}

func TestParseRefuses(t *testing.T) {
	for connection, says := range map[string]string{
		"AccountKey=" + key: "neither AccountName nor BlobEndpoint",
		"BlobEndpoint=https://acct.queue.core.windows.net;AccountName=acct;AccountKey=" + key:                                 "another service",
		"BlobEndpoint=ftp://acct.blob.core.windows.net;AccountName=acct;AccountKey=" + key:                                    "neither https nor http",
		"BlobEndpoint=https://u:p@acct.blob.core.windows.net;AccountName=acct;AccountKey=" + key:                              "BlobEndpoint",
		"Endpoint=sb://ns.servicebus.windows.net/;SharedAccessKeyName=all;SharedAccessKey=" + key:                             "one of Event Hubs",
		"BlobEndpoint=https://acct.blob.core.windows.net;AccountName=acct":                                                    "neither AccountKey nor",
		"QueueEndpoint=https://acct.queue.core.windows.net;SharedAccessSignature=sv=1&sig=abc":                                "neither AccountName nor BlobEndpoint",
		"AccountName=acct;AccountKey=" + key + ";BlobEndpoint=https://acct.servicebus.windows.net":                            "another service",
		"AccountName=acct;AccountKey=" + key + ";QueueEndpoint=https://acct.blob.core.windows.net":                            "another service",
		"AccountName=acct;AccountKey=" + key[1:]:                                                                              "base64",
		"BlobEndpoint=https://acct.blob.core.windows.net;QueueEndpoint=https://acct.queue.core.windows.net;AccountKey=" + key: "no AccountName",
		"AccountName=acct;SharedAccessSignature=" + key:                                                                       "sig=",
		"BlobEndpoint=https://acct.blob.core.windows.net;QueueEndpoint=x;SharedAccessSignature=sig=":                          "QueueEndpoint",
	} {
		_, err := Parse("the other connection string", connection, Blob, Queue)
		if !errors.Is(err, lease.ErrInvalid) || !strings.Contains(err.Error(), says) || !strings.HasPrefix(err.Error(), "the other connection string ") {
			t.Errorf("%v; want it to speak of %q", err, says)
		}
		if err != nil && strings.Contains(err.Error(), key[:12]) {
			t.Errorf("Parse tells the key: %v", err)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add("DefaultEndpointsProtocol=https;AccountName=acct;AccountKey=" + key + ";EndpointSuffix=core.windows.net")
	f.Add("BlobEndpoint=https://acct.blob.core.windows.net/;SharedAccessSignature=sv=1&sig=abc%3D")
	f.Add("UseDevelopmentStorage=true")
	f.Add(";;=;AccountKey==")
	f.Fuzz(func(t *testing.T, s string) {
		for _, service := range []Service{Blob, Queue} {
			a, err := Parse("connection string", s, service)
			if err != nil {
				if !errors.Is(err, lease.ErrInvalid) {
					t.Errorf("%v is not lease.ErrInvalid", err)
				}
				continue
			}
			if a.Endpoint(service).Host == "" || (a.key == "") == (a.sas == "") {
				t.Errorf("accepted without what is needed: host %q, key %t, signature %t", a.Endpoint(service).Host, a.key != "", a.sas != "")
			}
		}
	})
}
