// Package azstorage is what the sources share that use Azure Storage: how a connection string is read, how requests are sent and tried again, and
// what is told of those that failed.
package azstorage
