<#
.SYNOPSIS
Starts the server on Windows: in WSL2 if a Linux distribution is there, else in Docker Desktop.

.DESCRIPTION
Every argument is the server's own, as in `launcher.py --help`, and is passed on. The port is the
same on Windows. A --hf-model that is a local path may be a Windows path.

.PARAMETER In
Where to start it: auto, wsl or docker.

.EXAMPLE
.\start.ps1 --hf-model demo

.EXAMPLE
.\start.ps1 -In docker --hf-model C:\models\my-model --port 8000
#>
[CmdletBinding(PositionalBinding = $false)]
param(
    [ValidateSet('auto', 'wsl', 'docker')]
    [string] $In = 'auto',

    [Parameter(ValueFromRemainingArguments = $true)]
    [string[]] $ServerArguments = @()
)

Set-StrictMode -Version 3.0
$Image = 'transformers-openai-api:windows'

# The name of a WSL2 distribution, the default one first; $null if there is none.
function Find-Distribution {
    if (-not (Get-Command -Name wsl.exe -ErrorAction SilentlyContinue)) { return $null }
    # wsl.exe writes UTF-16, which arrives with a zero after every letter.
    $lines = @(wsl.exe --list --verbose 2>$null) -replace "`0", ''
    $lines = @($lines -match '^\s*\*') + @($lines -notmatch '^\s*\*')
    foreach ($line in $lines) {
        # Docker Desktop's own distributions are not for users.
        if ($line -match '^\s*\*?\s*(\S+)\s.*\s2\s*$' -and $Matches[1] -notlike 'docker-desktop*') {
            return $Matches[1]
        }
    }
    return $null
}

# Whether Docker runs here, with Linux containers.
function Test-Docker {
    if (-not (Get-Command -Name docker.exe -ErrorAction SilentlyContinue)) { return $false }
    $system = docker.exe version --format '{{.Server.Os}}' 2>$null
    return $LASTEXITCODE -eq 0 -and $system -eq 'linux'
}

# The value of the last --name value or --name=value; $null if there is none.
function Get-Value([string] $Name) {
    $value = $null
    for ($i = 0; $i -lt $ServerArguments.Count; $i++) {
        if ($ServerArguments[$i] -eq $Name -and $i + 1 -lt $ServerArguments.Count) {
            $value = $ServerArguments[$i + 1]
        }
        elseif ($ServerArguments[$i].StartsWith("$Name=")) {
            $value = $ServerArguments[$i].Substring($Name.Length + 1)
        }
    }
    return $value
}

# The full path of a --hf-model that is a Windows path, else $null: `demo` is a name, ~/x is Linux's.
function Get-ModelDirectory {
    $model = Get-Value '--hf-model'
    if ($model -notmatch '^([A-Za-z]:|\\\\|\.{1,2}([\\/]|$))') { return $null }
    if (-not (Test-Path -LiteralPath $model -PathType Container)) {
        throw "--hf-model ${model}: there is no such directory."
    }
    return (Resolve-Path -LiteralPath $model).ProviderPath
}

# The server's arguments with another --hf-model, which comes last and so wins.
function Get-ArgumentsFor([string] $Model) {
    if ($Model) { return $ServerArguments + @('--hf-model', $Model) }
    return $ServerArguments
}

function Start-InWsl([string] $Distribution, [string] $Directory) {
    $model = ''
    if ($Directory) {
        $model = wsl.exe --distribution $Distribution --exec wslpath -a ($Directory -replace '\\', '/')
    }
    $arguments = @(Get-ArgumentsFor $model)
    Write-Host "Starting in WSL2 ($Distribution)."
    wsl.exe --distribution $Distribution --cd $PSScriptRoot --exec bash deploy/windows/serve_in_wsl.sh @arguments
}

function Start-InDocker([string] $Directory) {
    Write-Host 'Starting in Docker. The first build downloads several gigabytes.'
    docker.exe build --tag $Image $PSScriptRoot
    if ($LASTEXITCODE -ne 0) { return }
    $port = Get-Value '--port'
    if (-not $port) { $port = '7088' }
    $options = @('--rm', '--publish', "127.0.0.1:${port}:${port}", '--env', "PORT=$port", '--env', 'HF_TOKEN')
    $options += @('--volume', 'transformers-openai-api_cache:/cache')
    if (Get-Command -Name nvidia-smi.exe -ErrorAction SilentlyContinue) { $options += @('--gpus', 'all') }
    $model = ''
    if ($Directory) {
        $model = '/models/' + (Split-Path -Path $Directory -Leaf)
        $options += @('--mount', "type=bind,source=$Directory,target=$model,readonly")
    }
    $arguments = @(Get-ArgumentsFor $model)
    docker.exe run @options $Image @arguments
}

try {
    $directory = Get-ModelDirectory
}
catch {
    [Console]::Error.WriteLine($_.Exception.Message)
    exit 78
}
$distribution = if ($In -ne 'docker') { Find-Distribution } else { $null }
if ($distribution) {
    Start-InWsl $distribution $directory
}
elseif ($In -ne 'wsl' -and (Test-Docker)) {
    Start-InDocker $directory
}
else {
    [Console]::Error.WriteLine(
        'The server needs Linux: install WSL2 (in an administrator''s PowerShell: wsl --install), or install and start Docker Desktop, then run this again.'
    )
    exit 78
}
exit $LASTEXITCODE
