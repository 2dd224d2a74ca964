package container

import "os"

var forwarded = []os.Signal{os.Interrupt}

func signalName(os.Signal) string { return "INT" }
