{{- /* An object with what values change of it. */ -}}
{{- define "egress-agent.object" }}
{{- $object := .object }}
{{- if hasKey $object "Error" }}{{ fail (printf "files/ has a document that is no YAML: %s" $object.Error) }}{{ end }}
{{- $labels := $object.metadata.labels | default dict }}
{{- if hasKey $labels "app.kubernetes.io/managed-by" }}
{{- $_ := set $labels "app.kubernetes.io/managed-by" .Release.Service }}
{{- end }}
{{- $role := dict "DaemonSet/egress-agent" "agent" "Deployment/egress-controller" "controller" "Deployment/egress-webhook" "webhook" }}
{{- $role = get $role (printf "%s/%s" $object.kind $object.metadata.name) }}
{{- if $role }}
{{- $_ := include "egress-agent.workload" (dict "object" $object "own" (get .Values $role) "image" .Values.image) }}
{{- end }}
{{- if .Values.rules }}
{{- $text := toYaml .Values.rules }}
{{- $name := printf "egress-rules-%s" (sha256sum $text | trunc 10) }}
{{- if and (eq $object.kind "ConfigMap") (hasPrefix "egress-rules-" $object.metadata.name) }}
{{- $_ := set $object.metadata "name" $name }}
{{- $_ := set $object "data" (dict "rules.yaml" $text) }}
{{- else if eq $role "webhook" }}
{{- /* The webhook is rolled out again, because the name is another. */ -}}
{{- range $object.spec.template.spec.volumes }}
{{- if eq .name "rules" }}{{ $_ := set .configMap "name" $name }}{{ end }}
{{- end }}
{{- end }}
{{- end }}
{{- toYaml $object }}
{{- end }}

{{- /* Changes a DaemonSet or Deployment in its place, and writes nothing. */ -}}
{{- define "egress-agent.workload" }}
{{- $pod := .object.spec.template.spec }}
{{- $container := first $pod.containers }}
{{- if .image.digest }}
{{- $_ := set $container "image" (printf "%s@%s" .image.repository .image.digest) }}
{{- else }}
{{- $_ := set $container "image" (printf "%s:%s" .image.repository .image.tag) }}
{{- end }}
{{- $_ := set $container "imagePullPolicy" .image.pullPolicy }}
{{- if .image.pullSecrets }}
{{- $secrets := list }}
{{- range .image.pullSecrets }}{{ $secrets = append $secrets (dict "name" .) }}{{ end }}
{{- $_ := set $pod "imagePullSecrets" $secrets }}
{{- end }}
{{- $own := .own.env | default dict }}
{{- $env := list }}
{{- range $container.env }}
{{- if not (hasKey $own .name) }}{{ $env = append $env . }}{{ end }}
{{- end }}
{{- range $name, $value := $own }}
{{- $env = append $env (dict "name" $name "value" (toString $value)) }}
{{- end }}
{{- $_ := set $container "env" $env }}
{{- if .own.resources }}{{ $_ := set $container "resources" .own.resources }}{{ end }}
{{- if .own.replicas }}{{ $_ := set .object.spec "replicas" .own.replicas }}{{ end }}
{{- end }}
