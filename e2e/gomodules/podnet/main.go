// podnet is the least that a cluster on one bridge needs for its pod network.
//
// All nodes sit on one bridge, so pod traffic between nodes needs one route per peer: its pod addresses by way of its
// own address. Every node also gets one CNI configuration (ptp, host-local, portmap) for its share of the addresses.
// Nothing is masqueraded: a packet to an address outside the cluster has nowhere to go.
package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"log"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"github.com/vishvananda/netlink"
)

const (
	serviceAccount = "/var/run/secrets/kubernetes.io/serviceaccount/"
	configuration  = "/etc/cni/net.d/10-podnet.conflist"
)

type node struct {
	Metadata struct{ Name string }
	Spec     struct{ PodCIDR string }
	Status   struct {
		Addresses []struct{ Type, Address string }
	}
}

func main() {
	self, client := os.Getenv("NODE_NAME"), newClient()
	before := ""
	for {
		routes, err := update(client, self)
		if err != nil {
			log.Print(err)
			time.Sleep(time.Second)
			continue
		}
		if routes != before {
			log.Print("routes: ", routes)
			before = routes
		}
		time.Sleep(3 * time.Second)
	}
}

func newClient() *http.Client {
	authority, err := os.ReadFile(serviceAccount + "ca.crt")
	if err != nil {
		log.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(authority)
	return &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}}}
}

// update brings routes and configuration in line with the nodes; it returns the routes as text.
func update(client *http.Client, self string) (string, error) {
	nodes, err := list(client)
	if err != nil {
		return "", err
	}
	routes := ""
	for _, n := range nodes {
		_, addresses, err := net.ParseCIDR(n.Spec.PodCIDR)
		if err != nil {
			continue // not assigned yet
		}
		if n.Metadata.Name == self {
			if err := configure(n.Spec.PodCIDR); err != nil {
				return "", err
			}
			continue
		}
		for _, a := range n.Status.Addresses {
			gateway := net.ParseIP(a.Address).To4()
			if a.Type != "InternalIP" || gateway == nil {
				continue
			}
			if err := netlink.RouteReplace(&netlink.Route{Dst: addresses, Gw: gateway}); err != nil {
				return "", fmt.Errorf("route to %s by way of %s: %w", addresses, gateway, err)
			}
			routes += fmt.Sprintf("%s by %s; ", addresses, gateway)
		}
	}
	return routes, nil
}

func list(client *http.Client) ([]node, error) {
	server := os.Getenv("CONTROL_PLANE_ENDPOINT") // added by kind: reachable before kube-proxy knows the Service
	if server == "" {
		server = net.JoinHostPort(os.Getenv("KUBERNETES_SERVICE_HOST"), os.Getenv("KUBERNETES_SERVICE_PORT"))
	}
	token, err := os.ReadFile(serviceAccount + "token")
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	// resourceVersion=0: answered from the API server's memory.
	url := "https://" + server + "/api/v1/nodes?resourceVersion=0"
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	request.Header.Set("Authorization", "Bearer "+string(token))
	response, err := client.Do(request)
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("list nodes: %s", response.Status)
	}
	var answer struct{ Items []node }
	if err := json.NewDecoder(response.Body).Decode(&answer); err != nil {
		return nil, err
	}
	return answer.Items, nil
}

// configure writes the CNI configuration in one move, if it is not there.
func configure(addresses string) error {
	content, err := json.MarshalIndent(map[string]any{
		"cniVersion": "1.0.0",
		"name":       "podnet",
		"plugins": []any{
			map[string]any{
				"type":   "ptp",
				"mtu":    1500,
				"ipMasq": false,
				"ipam": map[string]any{
					"type":    "host-local",
					"dataDir": "/run/cni-ipam-state",
					"routes":  []any{map[string]any{"dst": "0.0.0.0/0"}},
					"ranges":  []any{[]any{map[string]any{"subnet": addresses}}},
				},
			},
			map[string]any{"type": "portmap", "capabilities": map[string]any{"portMappings": true}},
		},
	}, "", "  ")
	if err != nil {
		return err
	}
	if there, err := os.ReadFile(configuration); err == nil && string(there) == string(content) {
		return nil
	}
	partial := filepath.Join(filepath.Dir(configuration), ".podnet")
	if err := os.WriteFile(partial, content, 0o644); err != nil {
		return err
	}
	return os.Rename(partial, configuration)
}
