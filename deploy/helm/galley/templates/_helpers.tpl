{{- define "galley.name" -}}
{{- if contains "galley" .Release.Name }}{{ .Release.Name | trunc 63 | trimSuffix "-" }}
{{- else }}{{ printf "%s-galley" .Release.Name | trunc 63 | trimSuffix "-" }}{{ end }}
{{- end }}

{{- define "galley.selector" -}}
app.kubernetes.io/name: galley
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "galley.labels" -}}
{{ include "galley.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end }}

{{- define "galley.secret" -}}
{{- .Values.existingSecret | default (include "galley.name" .) }}
{{- end }}

{{- define "galley.hasSecret" -}}
{{- if or .Values.existingSecret .Values.apiKey .Values.hfToken }}true{{ end }}
{{- end }}
