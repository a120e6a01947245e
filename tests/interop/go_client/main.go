// fluent-logger-golang: sends the JSON lines of standard input and ends when every one has been acknowledged (or, without acks, written).
package main

import (
	"bufio"
	"encoding/json"
	"flag"
	"log"
	"os"
	"time"

	"github.com/fluent/fluent-logger-golang/fluent"
)

func main() {
	port := flag.Int("port", 24224, "port of the receiver")
	network := flag.String("network", "tcp", "tcp, tls or unix")
	socketPath := flag.String("socket", "", "path of the receiver's Unix socket")
	ack := flag.Bool("ack", false, "ask for acknowledgements")
	asJSON := flag.Bool("json", false, "send JSON instead of msgpack")
	async := flag.Bool("async", false, "send from the library's own queue")
	flag.Parse()

	logger, err := fluent.New(fluent.Config{
		FluentHost:            "127.0.0.1",
		FluentPort:            *port,
		FluentNetwork:         *network,
		FluentSocketPath:      *socketPath,
		TagPrefix:             "interop",
		RequestAck:            *ack,
		MarshalAsJSON:         *asJSON,
		Async:                 *async,
		SubSecondPrecision:    !*asJSON,
		TlsInsecureSkipVerify: true,
		Timeout:               5 * time.Second,
		WriteTimeout:          5 * time.Second,
		ReadTimeout:           20 * time.Second,
	})
	if err != nil {
		log.Fatal(err)
	}
	lines := bufio.NewScanner(os.Stdin)
	lines.Buffer(nil, 1<<24)
	for lines.Scan() {
		var record map[string]any
		if err := json.Unmarshal(lines.Bytes(), &record); err != nil {
			log.Fatal(err)
		}
		if err := logger.Post("go", record); err != nil {
			log.Fatal(err)
		}
	}
	if err := logger.Close(); err != nil {
		log.Fatal(err)
	}
}
