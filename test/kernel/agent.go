package kernel

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"sync"
	"syscall"
)

// A Command is what an agent runs.
type Command struct {
	Arguments   []string
	Environment []string // besides the agent's own
}

// A piece is what the agent answers, many of them in one answer: the process's ID first, then some
// output, at last the end.
type piece struct {
	PID    int    `json:",omitempty"`
	Output []byte `json:",omitempty"`
	Ended  bool   `json:",omitempty"`
	Status int    `json:",omitempty"`
	Error  string `json:",omitempty"`
}

// serveAgent runs commands for whoever asks, and connects to sockets. A command whose asker goes
// away is killed.
func serveAgent(address string) error {
	handler := http.NewServeMux()
	handler.HandleFunc("POST /run", runForAnother)
	handler.HandleFunc("GET /connect", connectAnother)
	server := &http.Server{Addr: address, Handler: handler}
	return server.ListenAndServe()
}

func runForAnother(answer http.ResponseWriter, request *http.Request) {
	var wanted Command
	if err := json.NewDecoder(request.Body).Decode(&wanted); err != nil || len(wanted.Arguments) == 0 {
		http.Error(answer, "no command", http.StatusBadRequest)
		return
	}
	pieces := &pieces{to: json.NewEncoder(answer), flush: http.NewResponseController(answer).Flush}
	command := exec.CommandContext(request.Context(), wanted.Arguments[0], wanted.Arguments[1:]...)
	command.Env = append(os.Environ(), wanted.Environment...)
	command.Env = append(command.Env, envAgent+"=")
	command.Stdout, command.Stderr = pieces, pieces
	command.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	command.Cancel = func() error { return syscall.Kill(-command.Process.Pid, syscall.SIGKILL) }
	err := command.Start()
	if err == nil {
		pieces.send(piece{PID: command.Process.Pid})
		err = command.Wait()
	}
	end := piece{Ended: true, Status: command.ProcessState.ExitCode()}
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		end.Error = err.Error()
	}
	pieces.send(end)
}

// pieces sends what is written to it at once.
type pieces struct {
	mutex sync.Mutex
	to    *json.Encoder
	flush func() error
}

func (p *pieces) send(one piece) {
	p.mutex.Lock()
	defer p.mutex.Unlock()
	if p.to.Encode(one) == nil {
		_ = p.flush()
	}
}

func (p *pieces) Write(output []byte) (int, error) {
	p.send(piece{Output: output})
	return len(output), nil
}

// Run runs a command in the guest, writes what it prints, and returns an error if it ends badly.
// When ctx ends the command is killed.
func (g *Guest) Run(ctx context.Context, output io.Writer, command Command) error {
	return g.run(ctx, output, command, func(int) {})
}

// run is Run that also tells the process's ID, as soon as there is one.
func (g *Guest) run(ctx context.Context, output io.Writer, command Command, begun func(pid int)) error {
	body, err := json.Marshal(command)
	if err != nil {
		return err
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+g.network.agent(g.number)+"/run", bytes.NewReader(body))
	if err != nil {
		return err
	}
	answer, err := http.DefaultClient.Do(request)
	if err != nil {
		return fmt.Errorf("ask guest %d: %w", g.number, err)
	}
	defer answer.Body.Close()
	decoder := json.NewDecoder(bufio.NewReader(answer.Body))
	for {
		var one piece
		if err := decoder.Decode(&one); err != nil {
			return fmt.Errorf("guest %d went away under %s: %w", g.number, command.Arguments[0], err)
		}
		if one.PID != 0 {
			begun(one.PID)
		}
		if _, err := output.Write(one.Output); err != nil {
			return err
		}
		switch {
		case one.Error != "":
			return fmt.Errorf("guest %d, %s: %s", g.number, command.Arguments[0], one.Error)
		case one.Ended && one.Status != 0:
			return fmt.Errorf("guest %d, %s: exit status %d", g.number, command.Arguments[0], one.Status)
		case one.Ended:
			return nil
		}
	}
}

// Output runs a command in the guest and returns what it prints.
func (g *Guest) Output(ctx context.Context, arguments ...string) (string, error) {
	var output bytes.Buffer
	err := g.Run(ctx, &output, Command{Arguments: arguments})
	return output.String(), err
}
