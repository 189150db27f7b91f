# Runs while installing, when the prefix is known: the files that name other installed files, and those that the
# installed `trivium` prints about itself.
set(BIN_DIR ${CMAKE_INSTALL_PREFIX}/${TRIVIUM_INSTALL_BINDIR})
set(CONFIG_DIR ${CMAKE_INSTALL_PREFIX}/etc/trivium)
if(CMAKE_INSTALL_PREFIX STREQUAL "/usr")
  set(CONFIG_DIR /etc/trivium)
endif()

foreach(ROLE router encode prefill decode)
  configure_file(${CMAKE_CURRENT_LIST_DIR}/trivium.service.in
    $ENV{DESTDIR}${CMAKE_INSTALL_PREFIX}/lib/systemd/system/trivium-${ROLE}.service @ONLY)
  # What an administrator changed stays.
  if(NOT EXISTS $ENV{DESTDIR}${CONFIG_DIR}/${ROLE}.yaml)
    file(INSTALL ${CMAKE_CURRENT_LIST_DIR}/${ROLE}.yaml DESTINATION ${CONFIG_DIR})
  endif()
endforeach()

function(install_output FILE)  # arguments of trivium...
  set(path $ENV{DESTDIR}${CMAKE_INSTALL_PREFIX}/share/${FILE})
  execute_process(COMMAND $ENV{DESTDIR}${BIN_DIR}/trivium ${ARGN}
    OUTPUT_VARIABLE text COMMAND_ERROR_IS_FATAL ANY)
  file(WRITE ${path} "${text}")
  message(STATUS "Installing: ${path}")
endfunction()

# Packages leave zsh's site-functions to the administrator.
set(ZSH_DIR zsh/site-functions)
if(CMAKE_INSTALL_PREFIX STREQUAL "/usr")
  set(ZSH_DIR zsh/vendor-completions)
endif()
install_output(man/man1/trivium.1 man)
install_output(bash-completion/completions/trivium completion bash)
install_output(${ZSH_DIR}/_trivium completion zsh)
install_output(fish/vendor_completions.d/trivium.fish completion fish)
