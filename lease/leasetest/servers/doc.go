// Package servers starts the real servers that the tests run against: redis-server and Azurite, the emulator of Azure
// Storage.
//
// Each server listens on a free port of 127.0.0.1, keeps its data in a folder of its own, and can be stopped, killed and
// started again with the same port and data, so that a test can watch what a source makes of it. A server dies with
// the process that started it, even when that is killed.
//
// A server that cannot be started is an error that says what to install. Tests must fail on it rather than skip: a
// suite that silently tests nothing proves nothing.
package servers
