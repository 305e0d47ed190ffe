package vm

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// The Vagrantfile is what Vagrant takes for one, and a misspelt setting in it is told. `make vagrant` brings it up.
func TestVagrantfileIsValid(t *testing.T) {
	validate := func(dir string) (string, error) {
		// The provider of whoever runs this is not to decide, and nothing is to be kept in the checkout.
		cmd := exec.Command("vagrant", "validate", "--ignore-provider")
		cmd.Dir = dir
		home := t.TempDir()
		cmd.Env = append(os.Environ(), "HOME="+home, "VAGRANT_HOME="+home, "VAGRANT_DOTFILE_PATH="+filepath.Join(home, "dot"))
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
	checkout := filepath.Dir(filepath.Dir(mustGetwd(t)))
	if out, err := validate(checkout); err != nil {
		t.Errorf("vagrant validate (scripts/setup test installs vagrant): %v\n%s", err, out)
	}
	text, err := os.ReadFile(filepath.Join(checkout, "Vagrantfile"))
	if err != nil {
		t.Fatal(err)
	}
	bad := t.TempDir()
	if err := os.WriteFile(filepath.Join(bad, "Vagrantfile"), []byte(strings.Replace(string(text), "vm.hostname", "vm.hostnam", 1)), 0o644); err != nil {
		t.Fatal(err)
	}
	if out, err := validate(bad); err == nil || !strings.Contains(out, "hostnam") {
		t.Errorf("a Vagrantfile with a misspelt setting: %v\n%s", err, out)
	}
}
