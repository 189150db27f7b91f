{{- define "trivium.modelVolume" -}}
{{- $model := .Values.model -}}
{{- $given := compact (list $model.existingClaim $model.hostPath $model.url) -}}
{{- if ne (len $given) 1 -}}
{{- fail "name the model by exactly one of model.existingClaim, model.hostPath and model.url" -}}
{{- end -}}
{{- if $model.existingClaim -}}
persistentVolumeClaim:
  claimName: {{ $model.existingClaim }}
  readOnly: true
{{- else if $model.hostPath -}}
hostPath:
  path: {{ $model.hostPath }}
  type: Directory
{{- else -}}
emptyDir: {}
{{- end -}}
{{- end -}}

{{/* Fetches one file, whose values, a dict of file, url and sha256, are called `what`. Takes the URL and its sum from the
environment, so that neither is ever read as shell. */}}
{{- define "trivium.fetch" -}}
{{- if not .file.url -}}
{{- fail (printf "with model.url, %s.url is needed too" .what) -}}
{{- end -}}
{{- if not .file.sha256 -}}
{{- fail (printf "%s.url needs %s.sha256" .what .what) -}}
{{- end -}}
- name: fetch-{{ .what | splitList "." | last }}
  image: {{ .root.Values.model.fetchImage }}
  imagePullPolicy: {{ .root.Values.image.pullPolicy }}
  command: ["/bin/sh", "-ec"]
  args:
    - |
      matches() { echo "$SHA256  $1" | sha256sum -c >/dev/null 2>&1; }
      if matches "$FILE"; then exit 0; fi
      mkdir -p "$(dirname "$FILE")"
      curl --fail --location --silent --show-error --retry 5 --output "$FILE.part" "$URL"
      matches "$FILE.part" || { echo "$URL has another SHA-256 than $SHA256"; exit 1; }
      mv "$FILE.part" "$FILE"
  env:
    - {name: URL, value: {{ .file.url | quote }}}
    - {name: SHA256, value: {{ .file.sha256 | quote }}}
    - {name: FILE, value: {{ printf "/models/%s" .file.file | quote }}}
  securityContext:
    {{- include "trivium.containerSecurity" .root | nindent 4 }}
  volumeMounts:
    - {name: models, mountPath: /models}
{{- end -}}
