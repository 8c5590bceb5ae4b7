// mockgpu offers imaginary GPUs as nvidia.com/gpu: a device plugin (v1beta1) and the labels of GPU feature discovery.
//
// The kubelet owns capacity and allocation, as with real ones. A file in FAULTS named after a device's index ("3") or
// "all" makes devices unhealthy, as NVIDIA's plugin does on a critical XID; removing it heals them. After a kubelet's
// restart, which removes every plugin's socket, it registers again.
package main

import (
	"bytes"
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
	"strconv"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	api "k8s.io/kubelet/pkg/apis/deviceplugin/v1beta1"
)

const (
	resource       = "nvidia.com/gpu"
	serviceAccount = "/var/run/secrets/kubernetes.io/serviceaccount/"
	look           = 500 * time.Millisecond
)

type plugin struct {
	api.UnimplementedDevicePluginServer
	node   string
	count  int
	faults string
}

func main() {
	count, err := strconv.Atoi(os.Getenv("GPU_COUNT"))
	if err != nil {
		log.Fatal("GPU_COUNT: ", err)
	}
	p := &plugin{node: os.Getenv("NODE_NAME"), count: count, faults: os.Getenv("FAULTS")}
	go p.label(map[string]string{
		resource + ".product": os.Getenv("GPU_PRODUCT"),
		resource + ".memory":  os.Getenv("GPU_MEMORY_MIB"),
		resource + ".family":  os.Getenv("GPU_FAMILY"),
		resource + ".count":   strconv.Itoa(count),
		resource + ".present": "true",
	})
	for {
		log.Print(p.serve(filepath.Join(api.DevicePluginPath, "mockgpu.sock")))
		time.Sleep(time.Second)
	}
}

// serve registers with the kubelet and returns when the kubelet has removed the socket.
func (p *plugin) serve(socket string) error {
	_ = os.Remove(socket)
	listener, err := net.Listen("unix", socket)
	if err != nil {
		return err
	}
	server := grpc.NewServer()
	api.RegisterDevicePluginServer(server, p)
	go func() { _ = server.Serve(listener) }()
	defer server.Stop()
	if err := register(filepath.Base(socket)); err != nil {
		return err
	}
	log.Printf("registered %d devices", p.count)
	for {
		time.Sleep(look)
		if _, err := os.Stat(socket); err != nil {
			return fmt.Errorf("the kubelet removed the socket: registering again")
		}
	}
}

func register(endpoint string) error {
	connection, err := grpc.NewClient("unix://"+api.KubeletSocket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return err
	}
	defer connection.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	request := &api.RegisterRequest{Version: api.Version, Endpoint: endpoint, ResourceName: resource}
	_, err = api.NewRegistrationClient(connection).Register(ctx, request)
	return err
}

func (p *plugin) GetDevicePluginOptions(context.Context, *api.Empty) (*api.DevicePluginOptions, error) {
	return &api.DevicePluginOptions{}, nil
}

// ListAndWatch sends the devices at once and whenever the health of one changed.
func (p *plugin) ListAndWatch(_ *api.Empty, stream api.DevicePlugin_ListAndWatchServer) error {
	sent := ""
	for stream.Context().Err() == nil {
		devices := p.devices()
		if now := fmt.Sprint(devices); now != sent {
			if err := stream.Send(&api.ListAndWatchResponse{Devices: devices}); err != nil {
				return err
			}
			sent = now
		}
		time.Sleep(look)
	}
	return nil
}

func (p *plugin) devices() []*api.Device {
	devices := make([]*api.Device, p.count)
	for i := range devices {
		health := api.Healthy
		if p.faulty("all") || p.faulty(strconv.Itoa(i)) {
			health = api.Unhealthy
		}
		devices[i] = &api.Device{ID: fmt.Sprintf("GPU-%s-%d", p.node, i), Health: health}
	}
	return devices
}

func (p *plugin) faulty(name string) bool {
	_, err := os.Stat(filepath.Join(p.faults, name))
	return err == nil
}

func (p *plugin) Allocate(_ context.Context, request *api.AllocateRequest) (*api.AllocateResponse, error) {
	response := &api.AllocateResponse{}
	for _, container := range request.ContainerRequests {
		response.ContainerResponses = append(response.ContainerResponses, &api.ContainerAllocateResponse{
			Envs: map[string]string{"NVIDIA_VISIBLE_DEVICES": strings.Join(container.DevicesIds, ",")},
		})
	}
	return response, nil
}

// label writes the labels on the own node, until that has succeeded.
func (p *plugin) label(labels map[string]string) {
	patch, _ := json.Marshal(map[string]any{"metadata": map[string]any{"labels": labels}})
	for {
		err := p.patchNode(patch)
		if err == nil {
			return
		}
		log.Print("labels: ", err)
		time.Sleep(2 * time.Second)
	}
}

func (p *plugin) patchNode(patch []byte) error {
	authority, err := os.ReadFile(serviceAccount + "ca.crt")
	if err != nil {
		return err
	}
	token, err := os.ReadFile(serviceAccount + "token")
	if err != nil {
		return err
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(authority)
	client := &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}}}
	server := net.JoinHostPort(os.Getenv("KUBERNETES_SERVICE_HOST"), os.Getenv("KUBERNETES_SERVICE_PORT"))
	request, err := http.NewRequest(http.MethodPatch, "https://"+server+"/api/v1/nodes/"+p.node, bytes.NewReader(patch))
	if err != nil {
		return err
	}
	request.Header.Set("Authorization", "Bearer "+string(token))
	request.Header.Set("Content-Type", "application/merge-patch+json")
	response, err := client.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return fmt.Errorf("patch node: %s", response.Status)
	}
	return nil
}
