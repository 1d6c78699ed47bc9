// Command h3get asks for URLs over HTTP/3 with quic-go, on one connection.
//
//	h3get CA DIR URL[@RANGE]...
//
// The body of answer n, from 0, is written to DIR/n; for each a line "HTTP/3 STATUS BYTES" is printed.
package main

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"log"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/quic-go/quic-go/http3"
)

func get(client *http.Client, what, file string) error {
	url, span, ranged := strings.Cut(what, "@")
	request, err := http.NewRequest(http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	if ranged {
		request.Header.Set("Range", span)
	}
	answer, err := client.Do(request)
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	out, err := os.Create(file)
	if err != nil {
		return err
	}
	defer out.Close()
	size, err := io.Copy(out, answer.Body)
	if err != nil {
		return err
	}
	fmt.Printf("HTTP/%d %d %d\n", answer.ProtoMajor, answer.StatusCode, size)
	return nil
}

func main() {
	if len(os.Args) < 4 {
		log.Fatal("usage: h3get CA DIR URL[@RANGE]...")
	}
	pem, err := os.ReadFile(os.Args[1])
	if err != nil {
		log.Fatal(err)
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(pem) {
		log.Fatal("no certificate in ", os.Args[1])
	}
	transport := &http3.Transport{TLSClientConfig: &tls.Config{RootCAs: roots}}
	client := &http.Client{Transport: transport}
	for n, what := range os.Args[3:] {
		if err := get(client, what, filepath.Join(os.Args[2], strconv.Itoa(n))); err != nil {
			log.Fatal(err)
		}
	}
	if err := transport.Close(); err != nil {
		log.Fatal(err)
	}
}
