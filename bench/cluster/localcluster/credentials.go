package localcluster

import (
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
)

// Files below the cluster's folder, readable by its owner only.
const (
	adminFile  = "kubeconfig"
	nodesFile  = "nodes.kubeconfig"
	tokensFile = "tokens.csv"
	keyFile    = "service-accounts.key"
)

// An identity is a user of the API server and the kubeconfig that makes one.
type identity struct {
	user, group, file, token string
}

// writeCredentials makes the tokens of all users, and the key that signs the tokens of service accounts.
func writeCredentials(dir string) ([]identity, error) {
	identities := []identity{
		{user: "admin", group: "system:masters", file: adminFile},
		{user: "system:node:bench", group: "system:nodes", file: nodesFile},
		{user: "system:kube-controller-manager", file: ControllerManager + ".kubeconfig"},
		{user: "system:kube-scheduler", file: Scheduler + ".kubeconfig"},
	}
	var lines strings.Builder
	for i := range identities {
		id := &identities[i]
		id.token = rand.Text()
		fmt.Fprintf(&lines, "%s,%s,%s,%q\n", id.token, id.user, id.user, id.group)
	}
	if err := os.WriteFile(filepath.Join(dir, tokensFile), []byte(lines.String()), 0o600); err != nil {
		return nil, err
	}
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		return nil, err
	}
	block := &pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(key)}
	return identities, os.WriteFile(filepath.Join(dir, keyFile), pem.EncodeToMemory(block), 0o600)
}

func kubeconfig(server string, certificate []byte, id identity) clientcmdapi.Config {
	const name = "lighterman-local"
	return clientcmdapi.Config{
		Clusters:       map[string]*clientcmdapi.Cluster{name: {Server: server, CertificateAuthorityData: certificate}},
		AuthInfos:      map[string]*clientcmdapi.AuthInfo{id.user: {Token: id.token}},
		Contexts:       map[string]*clientcmdapi.Context{name: {Cluster: name, AuthInfo: id.user}},
		CurrentContext: name,
	}
}
