package servers

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"time"
)

// The account that every Azurite has, with the key that its documentation publishes. It opens nothing else.
const (
	AzuriteAccount = "devstoreaccount1"
	AzuriteKey     = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
)

// AzuriteOptions say how an Azurite runs. The zero value serves queues.
type AzuriteOptions struct {
	// Dir is the data folder. Empty: a temporary one, removed by Close.
	Dir string
	// Blob waits for the blob service too, and names it in the connection string.
	Blob bool
	// InMemory keeps nothing on disk: faster, but nothing survives a stop.
	InMemory bool
}

// Azurite is a running emulator of Azure Storage. Its methods are not for concurrent use.
type Azurite struct {
	opts    AzuriteOptions
	node    string
	folder  string
	ports   []int // queue, blob, table
	cleanup func()
	process *process
}

// StartAzurite starts the Azurite that the lock file in leasetest/azurite pins, and waits until it answers.
func StartAzurite(ctx context.Context, opts AzuriteOptions) (*Azurite, error) {
	node, err := exec.LookPath("node")
	if err != nil {
		return nil, errors.New("node is not installed, and Azurite needs it: run `make deps`, or install Node.js 20 or later")
	}
	_, file, _, ok := runtime.Caller(0)
	if !ok {
		return nil, errors.New("the source folder of this package is unknown: build the tests without -trimpath")
	}
	folder := filepath.Join(filepath.Dir(filepath.Dir(file)), "azurite")
	if _, err := os.Stat(filepath.Join(folder, "node_modules", "azurite", "package.json")); err != nil {
		return nil, fmt.Errorf("azurite is not installed in %s: run `make deps`, or `npm ci` in that folder", folder)
	}
	a := &Azurite{opts: opts, node: node, folder: folder}
	if a.opts.Dir, a.cleanup, err = workFolder(opts.Dir, "lighterman-azurite-"); err != nil {
		return nil, err
	}
	err = onFreePorts(ctx, 3, func(ports []int) error {
		a.ports = ports
		return a.Restart(ctx)
	})
	if err != nil {
		a.cleanup()
		return nil, err
	}
	return a, nil
}

// RunAzurite starts an Azurite that ends with the test, which fails if there is none.
func RunAzurite(t TB, opts AzuriteOptions) *Azurite {
	t.Helper()
	a, err := StartAzurite(t.Context(), opts)
	if err != nil {
		t.Fatalf("%v", err)
	}
	t.Cleanup(a.Close)
	return a
}

// QueueEndpoint is the URL of the queue service, account included.
func (a *Azurite) QueueEndpoint() string {
	return fmt.Sprintf("http://127.0.0.1:%d/%s", a.ports[0], AzuriteAccount)
}

// BlobEndpoint is the URL of the blob service, account included. It is sure to answer only with AzuriteOptions.Blob.
func (a *Azurite) BlobEndpoint() string {
	return fmt.Sprintf("http://127.0.0.1:%d/%s", a.ports[1], AzuriteAccount)
}

// ConnectionString is the connection string with the published key.
func (a *Azurite) ConnectionString() string {
	s := "DefaultEndpointsProtocol=http;AccountName=" + AzuriteAccount + ";AccountKey=" + AzuriteKey +
		";QueueEndpoint=" + a.QueueEndpoint() + ";"
	if a.opts.Blob {
		s += "BlobEndpoint=" + a.BlobEndpoint() + ";"
	}
	return s
}

// Stop ends the server in good order; that is when it writes its data down.
func (a *Azurite) Stop() error { return a.process.stop() }

// Kill ends the server without a chance to save anything: what came in the last seconds is lost.
func (a *Azurite) Kill() { a.process.kill() }

// Restart stops the server, if it runs, and starts it again on the same ports and data.
func (a *Azurite) Restart(ctx context.Context) error {
	if err := a.process.stop(); err != nil {
		return err
	}
	// All services, although queues would often do: Azurite's program for queues alone cannot be told for how long it
	// keeps connections. One that the server closes just as a request goes out looks like a fault; real ones stay
	// open for longer.
	args := []string{
		filepath.Join(a.folder, "node_modules", "azurite", "dist", "src", "azurite.js"),
		"--silent", "--disableTelemetry", "--skipApiVersionCheck",
		"--queueHost", "127.0.0.1", "--queuePort", strconv.Itoa(a.ports[0]), "--queueKeepAliveTimeout", "120",
		"--blobHost", "127.0.0.1", "--blobPort", strconv.Itoa(a.ports[1]), "--blobKeepAliveTimeout", "120",
		"--tableHost", "127.0.0.1", "--tablePort", strconv.Itoa(a.ports[2]),
	}
	if a.opts.InMemory {
		args = append(args, "--inMemoryPersistence")
	} else {
		args = append(args, "--location", a.opts.Dir)
	}
	p, err := launch(ctx, "azurite", a.opts.Dir, nil, a.answers, a.node, args...)
	if err != nil {
		return err
	}
	a.process = p
	return nil
}

// Close stops the server and removes its temporary folder.
func (a *Azurite) Close() {
	_ = a.process.stop()
	a.cleanup()
}

// answers asks each service for anything; even a refusal tells that it is there.
func (a *Azurite) answers(ctx context.Context) error {
	endpoints := []string{a.QueueEndpoint()}
	if a.opts.Blob {
		endpoints = append(endpoints, a.BlobEndpoint())
	}
	client := http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	for _, endpoint := range endpoints {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, endpoint, nil)
		if err != nil {
			return err
		}
		resp, err := client.Do(req)
		if err != nil {
			return err
		}
		_ = resp.Body.Close()
	}
	return nil
}
