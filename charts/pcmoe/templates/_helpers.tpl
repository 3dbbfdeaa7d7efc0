{{/* The operator's name; those of its objects begin with it. */}}
{{- define "pcmoe.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride -}}
{{- else if contains "pcmoe" .Release.Name -}}
{{- printf "%s-operator" (.Release.Name | trunc 44 | trimSuffix "-") -}}
{{- else -}}
{{- printf "%s-pcmoe-operator" (.Release.Name | trunc 38 | trimSuffix "-") -}}
{{- end -}}
{{- end }}

{{/* What the operator's pods are chosen by. Never changes: a Deployment's selector can't. */}}
{{- define "pcmoe.selector" -}}
app.kubernetes.io/name: pcmoe-operator
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "pcmoe.labels" -}}
{{ include "pcmoe.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/part-of: pcmoe
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end }}

{{/* The same with others', which change none of ours. Takes theirs and the root. */}}
{{- define "pcmoe.labelsAnd" -}}
{{- mergeOverwrite (deepCopy (index . 0)) (include "pcmoe.labels" (index . 1) | fromYaml) | toYaml -}}
{{- end }}

{{- define "pcmoe.serviceAccount" -}}
{{- if .Values.serviceAccount.name -}}
{{- .Values.serviceAccount.name -}}
{{- else if .Values.serviceAccount.create -}}
{{- include "pcmoe.fullname" . -}}
{{- else -}}
{{- fail "serviceAccount.name: must be set when serviceAccount.create is false" -}}
{{- end -}}
{{- end }}

{{/* An image's reference. Takes the image's values and the chart's appVersion. */}}
{{- define "pcmoe.image" -}}
{{- $image := index . 0 -}}
{{- if $image.digest -}}
{{- printf "%s@%s" $image.repository $image.digest -}}
{{- else -}}
{{- printf "%s:%s" $image.repository ($image.tag | default (index . 1)) -}}
{{- end -}}
{{- end }}

{{/* The watched namespaces, as JSON. */}}
{{- define "pcmoe.namespaces" -}}
{{- .Values.watchNamespaces | default (list .Release.Namespace) | toJson -}}
{{- end }}

{{/* Who answers for names, as JSON: pods, addresses, ports. */}}
{{- define "pcmoe.dns" -}}
{{- $namespace := ternary "openshift-dns" "kube-system" .Values.openshift -}}
{{- $pods := list (dict "namespaceLabels" (dict "kubernetes.io/metadata.name" $namespace)) -}}
{{- $ports := list (ternary 5353 53 .Values.openshift) -}}
{{- dict
      "pods" (.Values.dns.pods | default $pods)
      "addresses" .Values.dns.addresses
      "ports" (.Values.dns.ports | default $ports)
    | toJson -}}
{{- end }}

{{/* What the operator reads: pcmoe_operator.settings.Settings. */}}
{{- define "pcmoe.settings" -}}
{{- $dns := include "pcmoe.dns" . | fromJson -}}
{{- $pullSecrets := list -}}
{{- range .Values.imagePullSecrets }}{{ $pullSecrets = append $pullSecrets .name }}{{ end -}}
{{- $told := dict
      "namespaces" (include "pcmoe.namespaces" . | fromJsonArray)
      "participants" .Values.partner.participants
      "partnerAddresses" .Values.partner.addresses
      "partnerSources" .Values.partner.sources
      "partnerGateways" .Values.partner.gateways
      "nodeImage" (include "pcmoe.image" (list .Values.node.image .Chart.AppVersion))
      "operatorImage" (include "pcmoe.image" (list .Values.operator.image .Chart.AppVersion))
      "imagePullPolicy" .Values.node.image.pullPolicy
      "imagePullSecrets" $pullSecrets
      "clusterDomain" .Values.clusterDomain
      "leaseNamespace" .Release.Namespace
      "leaseName" (include "pcmoe.fullname" .)
      "metricsPort" .Values.ports.metrics
      "nodePort" .Values.ports.exchange
      "statusPort" .Values.ports.status
      "operatorLabels" (include "pcmoe.selector" . | fromYaml)
      "metricsReaders" .Values.metrics.readers
      "dnsPods" $dns.pods
      "dnsAddresses" $dns.addresses
      "dnsPorts" $dns.ports
      "restartInPlace" (ternary (semverCompare ">=1.35.0-0" .Capabilities.KubeVersion.Version) .Values.settings.restartInPlace (kindIs "invalid" .Values.settings.restartInPlace))
      "volumeGroup" (ternary nil .Values.settings.volumeGroup .Values.openshift) -}}
{{- range $name, $value := omit .Values.settings "volumeGroup" "restartInPlace" }}{{ $_ := set $told $name $value }}{{ end -}}
{{- toPrettyJson $told -}}
{{- end }}

{{/* A peer of a NetworkPolicy: pods by their own and their namespace's labels. */}}
{{- define "pcmoe.peer" -}}
{{- $peer := dict -}}
{{- with .namespaceLabels }}{{ $_ := set $peer "namespaceSelector" (dict "matchLabels" .) }}{{ end -}}
{{- with .podLabels }}{{ $_ := set $peer "podSelector" (dict "matchLabels" .) }}{{ end -}}
{{- $peer | default (dict "podSelector" dict) | toYaml -}}
{{- end }}
