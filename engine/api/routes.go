package api

// routes is the whole API. Image names contain slashes, so what follows one is
// told apart in image.go.
func (s *Server) routes() {
	s.handle("GET /_ping", s.ping)
	s.handle("HEAD /_ping", s.ping)
	s.handle("GET /version", s.version)
	s.handle("GET /info", s.info)
	s.handle("GET /events", s.events)
	s.handle("GET /system/df", s.systemDF)
	s.handle("POST /auth", s.auth)

	s.handle("GET /containers/json", s.containerList)
	s.handle("POST /containers/create", s.containerCreate)
	s.handle("POST /containers/prune", s.containersPrune)
	s.handle("GET /containers/{id}/json", s.containerInspect)
	s.handle("GET /containers/{id}/logs", s.containerLogs)
	s.handle("GET /containers/{id}/top", s.containerTop)
	s.handle("GET /containers/{id}/stats", s.containerStats)
	s.handle("GET /containers/{id}/changes", s.containerChanges)
	s.handle("GET /containers/{id}/export", s.containerExport)
	s.handle("HEAD /containers/{id}/archive", s.archiveHead)
	s.handle("GET /containers/{id}/archive", s.archiveGet)
	s.handle("PUT /containers/{id}/archive", s.archivePut)
	s.handle("POST /containers/{id}/start", s.containerStart)
	s.handle("POST /containers/{id}/stop", s.containerStop)
	s.handle("POST /containers/{id}/restart", s.containerRestart)
	s.handle("POST /containers/{id}/kill", s.containerKill)
	s.handle("POST /containers/{id}/pause", s.containerPause)
	s.handle("POST /containers/{id}/unpause", s.containerUnpause)
	s.handle("POST /containers/{id}/rename", s.containerRename)
	s.handle("POST /containers/{id}/update", s.containerUpdate)
	s.handle("POST /containers/{id}/resize", s.containerResize)
	s.handle("POST /containers/{id}/attach", s.containerAttach)
	s.handle("GET /containers/{id}/attach/ws", s.containerAttachWS)
	s.handle("POST /containers/{id}/wait", s.containerWait)
	s.handle("DELETE /containers/{id...}", s.containerRemove) // with ?link=1 it is container/alias
	s.handle("POST /commit", s.containerCommit)

	s.handle("POST /containers/{id}/exec", s.execCreate)
	s.handle("POST /exec/{id}/start", s.execStart)
	s.handle("POST /exec/{id}/resize", s.execResize)
	s.handle("GET /exec/{id}/json", s.execInspect)

	s.handle("GET /images/json", s.imageList)
	s.handle("GET /images/get", s.imageSave)
	s.handle("GET /images/search", refused("search is not supported: minke talks to registries, not to an index"))
	s.handle("GET /images/{name}/attestations", refused("attestations are not kept with images"))
	s.handle("POST /images/create", s.imageCreate)
	s.handle("POST /images/load", s.imageLoad)
	s.handle("POST /images/prune", s.imagePrune)
	s.handle("GET /images/{name...}", s.imageGet)
	s.handle("POST /images/{name...}", s.imagePost)
	s.handle("DELETE /images/{name...}", s.imageRemove)

	s.handle("GET /distribution/{name...}", s.distribution)

	s.handle("POST /build", s.build)
	s.handle("POST /build/prune", s.buildPrune)

	s.handle("GET /networks", s.networkList)
	s.handle("POST /networks/create", s.networkCreate)
	s.handle("POST /networks/prune", s.networkPrune)
	s.handle("GET /networks/{id}", s.networkInspect)
	s.handle("DELETE /networks/{id}", s.networkRemove)
	s.handle("POST /networks/{id}/connect", s.networkConnect)
	s.handle("POST /networks/{id}/disconnect", s.networkDisconnect)

	s.handle("GET /volumes", s.volumeList)
	s.handle("POST /volumes/create", s.volumeCreate)
	s.handle("POST /volumes/prune", s.volumePrune)
	s.handle("GET /volumes/{name}", s.volumeInspect)
	s.handle("DELETE /volumes/{name}", s.volumeRemove)

	// Ours, and balenaEngine's.
	s.handle("POST /minke/store/check", s.storeCheck)
	s.handle("POST /minke/delta", s.deltaPush)
	s.handle("GET /minke/delta", s.deltaSave)
	s.handle("GET /minke/delta/report", s.deltaInspect)
	s.handle("POST /minke/delta/report", s.deltaInspectFile)
	s.handle("POST /images/delta", s.imageDelta)

	// What a daemon without swarm and plugins answers.
	noSwarm := refused("This node is not a swarm manager. Use \"docker swarm init\" or \"docker swarm join\" to connect this node to swarm and try again.")
	for _, path := range []string{"swarm", "nodes", "services", "tasks", "secrets", "configs"} {
		s.handle("/"+path, noSwarm)
		s.handle("/"+path+"/", noSwarm)
	}
	s.handle("PUT /volumes/{name}", noSwarm) // cluster volumes alone are changed
	s.handle("GET /plugins", s.plugins)
	s.handle("/plugins/", refused("plugins are not supported: volume, network and log drivers are part of minke"))
	s.handle("/", notFound)
}
