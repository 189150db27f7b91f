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

{{/* Takes the URL and its sum from the environment, so that neither is ever read as shell. */}}
{{- define "trivium.fetchModel" -}}
{{- if not .Values.model.sha256 -}}
{{- fail "model.url needs model.sha256" -}}
{{- end -}}
- name: fetch-model
  image: {{ .Values.model.fetchImage }}
  imagePullPolicy: {{ .Values.image.pullPolicy }}
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
    - {name: URL, value: {{ .Values.model.url | quote }}}
    - {name: SHA256, value: {{ .Values.model.sha256 | quote }}}
    - {name: FILE, value: {{ printf "/models/%s" .Values.model.file | quote }}}
  securityContext:
    {{- include "trivium.containerSecurity" . | nindent 4 }}
  volumeMounts:
    - {name: models, mountPath: /models}
{{- end -}}
