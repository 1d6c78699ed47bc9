// Command h3pull pulls an image over HTTP/3 and nothing else: go-containerregistry on quic-go.
//
//	h3pull CA HOST/REPOSITORY:TAG DIR
//
// The image is written to DIR as an OCI layout, every digest checked; the last line printed is
// "DIGEST REQUESTS", the number of requests that were answered, all of them over HTTP/3.
package main

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"log"
	"net/http"
	"os"
	"sync/atomic"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/validate"
	"github.com/quic-go/quic-go/http3"
)

// only refuses what is not HTTP/3: for a registry on loopback the library would also try plain HTTP.
type only struct {
	http3    http.RoundTripper
	requests atomic.Int64
}

func (o *only) RoundTrip(request *http.Request) (*http.Response, error) {
	if request.URL.Scheme != "https" {
		return nil, fmt.Errorf("%s is not https", request.URL)
	}
	answer, err := o.http3.RoundTrip(request)
	if err != nil {
		return nil, err
	}
	if answer.ProtoMajor != 3 {
		return nil, fmt.Errorf("%s was answered over %s", request.URL, answer.Proto)
	}
	o.requests.Add(1)
	return answer, nil
}

func pull(roots *x509.CertPool, image, dir string) error {
	transport := &http3.Transport{TLSClientConfig: &tls.Config{RootCAs: roots}}
	defer transport.Close()
	client := &only{http3: transport}
	reference, err := name.ParseReference(image)
	if err != nil {
		return err
	}
	pulled, err := remote.Image(reference, remote.WithTransport(client))
	if err != nil {
		return err
	}
	written, err := layout.Write(dir, empty.Index)
	if err != nil {
		return err
	}
	if err := written.AppendImage(pulled); err != nil {
		return err
	}
	index, err := written.ImageIndex()
	if err != nil {
		return err
	}
	if err := validate.Index(index); err != nil {
		return err
	}
	digest, err := pulled.Digest()
	if err != nil {
		return err
	}
	fmt.Println(digest, client.requests.Load())
	return nil
}

func main() {
	if len(os.Args) != 4 {
		log.Fatal("usage: h3pull CA HOST/REPOSITORY:TAG DIR")
	}
	pem, err := os.ReadFile(os.Args[1])
	if err != nil {
		log.Fatal(err)
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(pem) {
		log.Fatal("no certificate in ", os.Args[1])
	}
	if err := pull(roots, os.Args[2], os.Args[3]); err != nil {
		log.Fatal(err)
	}
}
