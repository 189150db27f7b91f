{{- define "trivium.fullname" -}}
{{- if contains .Chart.Name .Release.Name -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name .Chart.Name | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "trivium.selector" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "trivium.labels" -}}
{{ include "trivium.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end -}}

{{/* The ports of a role, as its configuration, Services, probes and NetworkPolicies name them. */}}
{{- define "trivium.ports" -}}
router: {grpc: 7400, http: 7480, metrics: 7410}
prefill: {grpc: 7401, metrics: 7411}
decode: {grpc: 7402, metrics: 7412}
encode: {grpc: 7403, metrics: 7413}
{{- end -}}

{{- define "trivium.workerRoles" -}}
prefill decode{{ if .Values.encode.replicas }} encode{{ end }}
{{- end -}}

{{- define "trivium.secretName" -}}
{{- .Values.clusterToken.existingSecret | default (printf "%s-cluster-token" (include "trivium.fullname" .)) -}}
{{- end -}}

{{/* The server and model parts of a role's configuration. Takes a dict of root and role. */}}
{{- define "trivium.commonConfig" -}}
{{- $ports := get (include "trivium.ports" .root | fromYaml) .role -}}
server:
  listen: 0.0.0.0:{{ $ports.grpc }}
  metrics_listen: 0.0.0.0:{{ $ports.metrics }}
  cluster_token_file: /etc/trivium/token/token
  log_level: {{ .root.Values.logLevel }}
  drain_timeout_s: {{ .root.Values.drainTimeoutSeconds }}
model:
  path: {{ printf "/models/%s" (eq .role "encode" | ternary .root.Values.encode.tower.file .root.Values.model.file) | quote }}
{{- end -}}

{{- define "trivium.checkTransfer" -}}
{{- $transfer := .Values.transfer -}}
{{- if gt (add $transfer.port $transfer.portCount) 65536 -}}
{{- fail "transfer.port and transfer.portCount go beyond port 65535" -}}
{{- end -}}
{{- $peers := sub (div (mul (div $transfer.portCount (ternary 2 1 (gt (int .Values.encode.replicas) 0))) 3) 4) 1 -}}
{{- range $role := splitList " " (include "trivium.workerRoles" .) -}}
{{- $replicas := (get $.Values $role).replicas | int64 -}}
{{- if gt $replicas $peers -}}
{{- fail (printf "transfer.portCount is enough for %d peers of a worker, but %s.replicas is %d" $peers $role $replicas) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "trivium.workerConfig" -}}
{{- $stage := get .root.Values .role -}}
{{- include "trivium.checkTransfer" .root -}}
{{ include "trivium.commonConfig" . }}
engine:
  threads: {{ $stage.threads }}
  {{- if ne .role "encode" }}
  kv_memory_bytes: {{ $stage.kvMemory }}
  {{- end }}
  {{- if eq .role "decode" }}
  admission: {{ $stage.admission }}
  {{- end }}
  {{- if ($stage.kvDisk | default dict).size }}
  kv_tiers:
    disk_path: /var/lib/trivium/kv-blocks
    disk_bytes: {{ $stage.kvDisk.size }}
    disk_key_file: /etc/trivium/disk-key/key
  {{- end }}
{{- if and .root.Values.encode.replicas (ne .role "decode") }}
pictures:
  memory_bytes: {{ eq .role "encode" | ternary $stage.memory $stage.picturesMemory }}
{{- end }}
transfer:
  interface: {{ .root.Values.transfer.interface }}
  transports: tcp,self
  port: {{ .root.Values.transfer.port }}
  port_count: {{ .root.Values.transfer.portCount }}
{{- end -}}

{{- define "trivium.routerConfig" -}}
{{- $root := .root -}}
{{- $fullname := include "trivium.fullname" $root -}}
{{- $ports := include "trivium.ports" $root | fromYaml -}}
{{ include "trivium.commonConfig" . }}
http:
  listen: 0.0.0.0:{{ $ports.router.http }}
{{- if $root.Values.encode.replicas }}
pictures:
  tower: {{ printf "/models/%s" $root.Values.encode.tower.file | quote }}
{{- end }}
workers:
{{- range $role := splitList " " (include "trivium.workerRoles" $root) }}
{{- range $i := until (int (get $root.Values $role).replicas) }}
  - address: {{ printf "%s-%s-%d.%s-%s.%s.svc.%s:%v" $fullname $role $i $fullname $role $root.Release.Namespace $root.Values.clusterDomain (get $ports $role).grpc }}
    role: {{ $role }}
{{- end }}
{{- end }}
{{- if $root.Values.masterKey.existingSecret }}
tenancy:
  master_key_file: /etc/trivium/master/key
{{- end }}
{{- end -}}

{{/* A role's whole configuration file; what the chart itself relies on wins over `config`. */}}
{{- define "trivium.config" -}}
{{- $own := include (ternary "trivium.routerConfig" "trivium.workerConfig" (eq .role "router")) . | fromYaml -}}
{{- mergeOverwrite (deepCopy (get .root.Values .role).config) $own | toYaml -}}
{{- end -}}

{{/* The pod of a role. Takes a dict of root and role. */}}
{{- define "trivium.pod" -}}
{{- $root := .root -}}
{{- $role := .role -}}
{{- $stage := get $root.Values $role -}}
{{- $ports := get (include "trivium.ports" $root | fromYaml) $role -}}
{{- $hasMaster := and (eq $role "router") $root.Values.masterKey.existingSecret -}}
{{- $disk := $stage.kvDisk | default dict -}}
metadata:
  labels:
    {{- include "trivium.labels" $root | nindent 4 }}
    app.kubernetes.io/component: {{ $role }}
  annotations:
    # Processes read both only when they start. Cut, so that the sum of a token is no way to guess it.
    checksum/config: {{ printf "%s%s" (include "trivium.config" .) $root.Values.clusterToken.value | sha256sum | trunc 8 | quote }}
spec:
  serviceAccountName: {{ include "trivium.fullname" $root }}
  automountServiceAccountToken: false
  enableServiceLinks: false
  # Time to leave the Service's endpoints, to drain, and to cancel what has not ended by then.
  terminationGracePeriodSeconds: {{ add $root.Values.drainTimeoutSeconds 30 }}
  securityContext:
    runAsNonRoot: true
    runAsUser: 65532
    runAsGroup: 65532
    fsGroup: 65532
    fsGroupChangePolicy: OnRootMismatch
    seccompProfile:
      type: RuntimeDefault
  {{- with $root.Values.image.pullSecrets }}
  imagePullSecrets:
    {{- range . }}
    - name: {{ . }}
    {{- end }}
  {{- end }}
  {{- if $root.Values.model.url }}
  initContainers:
    {{- if ne $role "encode" }}
    {{- include "trivium.fetch" (dict "root" $root "what" "model" "file" $root.Values.model) | nindent 4 }}
    {{- end }}
    {{- if and $root.Values.encode.replicas (has $role (list "router" "encode")) }}
    {{- include "trivium.fetch" (dict "root" $root "what" "encode.tower" "file" $root.Values.encode.tower) | nindent 4 }}
    {{- end }}
  {{- end }}
  containers:
    - name: {{ $role }}
      image: {{ printf "%s-%s:%s" $root.Values.image.repository $role ($root.Values.image.tag | default $root.Chart.AppVersion) }}
      imagePullPolicy: {{ $root.Values.image.pullPolicy }}
      args: ["--config", "/etc/trivium/config/config.yaml"]
      ports:
        {{- range $name, $port := $ports }}
        - name: {{ $name }}
          containerPort: {{ $port }}
        {{- end }}
      # All by gRPC, whose port opens last, when the model is loaded: up to ten minutes. None by the HTTP door's
      # /health: at http.connections_max it answers 503, and a busy router is no reason to restart it.
      startupProbe:
        grpc:
          port: {{ $ports.grpc }}
        periodSeconds: 2
        failureThreshold: 300
      readinessProbe:
        grpc:
          port: {{ $ports.grpc }}
          service: {{ ternary "trivium.v1.Inference" (printf "trivium.v1.%s" (title $role)) (eq $role "router") }}
        periodSeconds: 5
        timeoutSeconds: 3
      livenessProbe:
        grpc:
          port: {{ $ports.grpc }}
        periodSeconds: 10
        timeoutSeconds: 5
        failureThreshold: 6
      {{- if eq $role "router" }}
      # New connections may still come until every node knows that this pod is leaving.
      lifecycle:
        preStop:
          sleep:
            seconds: 5
      {{- end }}
      resources:
        {{- toYaml $stage.resources | nindent 8 }}
      securityContext:
        {{- include "trivium.containerSecurity" $root | nindent 8 }}
      volumeMounts:
        - {name: config, mountPath: /etc/trivium/config, readOnly: true}
        - {name: token, mountPath: /etc/trivium/token, readOnly: true}
        {{- if $hasMaster }}
        - {name: master, mountPath: /etc/trivium/master, readOnly: true}
        {{- end }}
        {{- if $disk.size }}
        - {name: disk-key, mountPath: /etc/trivium/disk-key, readOnly: true}
        - {name: kv-disk, mountPath: /var/lib/trivium}
        {{- end }}
        - {name: models, mountPath: /models, readOnly: true}
  volumes:
    - name: config
      configMap:
        name: {{ include "trivium.fullname" $root }}-{{ $role }}
    - name: token
      secret:
        secretName: {{ include "trivium.secretName" $root }}
        defaultMode: 0440
        items:
          - {key: token, path: token}
    {{- if $hasMaster }}
    - name: master
      secret:
        secretName: {{ $root.Values.masterKey.existingSecret }}
        defaultMode: 0440
        items:
          - {key: key, path: key}
    {{- end }}
    {{- if $disk.size }}
    - name: disk-key
      secret:
        secretName: {{ required (printf "%s.kvDisk.size needs %s.kvDisk.keySecret" $role $role) $disk.keySecret }}
        defaultMode: 0440
        items:
          - {key: key, path: key}
    {{- end }}
    - name: models
      {{- include "trivium.modelVolume" $root | nindent 6 }}
  {{- range $key := list "nodeSelector" "tolerations" "affinity" }}
  {{- with get $stage $key }}
  {{ $key }}:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- end }}
{{- end -}}

{{- define "trivium.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end -}}
